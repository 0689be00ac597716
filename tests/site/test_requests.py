"""Malformed and forged requests, written byte by byte to the site's socket (Molecule scenario overload).

A row is a request as it goes over the wire and what must come back: statuses that are right (0: the connection is closed without an
answer), and for what the app answers, what must have reached it.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass, field
from typing import Any

import pytest
from hosts import Host, Site

HOST = Host(os.environ.get("OVERLOAD_HOST", "quintet-overload"))
SITE = Site(HOST, "chat.test")
DOMAIN = "chat.test"
CLOSED = 0
SECONDS = 15


def exchange(request: bytes) -> bytes:
    """Send bytes and return all that comes back until the site closes or is silent."""
    with socket.create_connection((HOST.address, 80), timeout=SECONDS) as connection:
        connection.sendall(request)
        received = b""
        try:
            while part := connection.recv(65536):
                received += part
        except (TimeoutError, ConnectionResetError):
            pass
    return received


def statuses(received: bytes) -> list[int]:
    """Return the status of each answer in what came back."""
    answers, rest = [], received
    while rest.startswith(b"HTTP/1."):
        head, _, rest = rest.partition(b"\r\n\r\n")
        answers.append(int(head.split(b" ", 2)[1]))
        lines = head.lower().split(b"\r\n")
        length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), None)
        if length is not None:
            rest = rest[length:]
        elif b"transfer-encoding: chunked" in lines:
            while size := int(rest.partition(b"\r\n")[0], 16):
                rest = rest.partition(b"\r\n")[2][size + 2 :]
            rest = rest.partition(b"\r\n\r\n")[2]
    return answers or [CLOSED]


@dataclass(frozen=True)
class Row:
    """One request."""

    name: str
    lines: list[str]
    right: list[int]
    body: str = ""
    # What the app must have seen: keys of what /tell answers.
    seen: dict[str, Any] = field(default_factory=dict)
    # Variables of the application that must not be there, or not hold what was claimed.
    unseen: tuple[str, ...] = ()


def get(path: str, *headers: str, host: str = DOMAIN) -> list[str]:
    return [f"GET {path} HTTP/1.1", f"Host: {host}", *headers, "Connection: close"]


def post(*headers: str) -> list[str]:
    return ["POST /tell HTTP/1.1", f"Host: {DOMAIN}", *headers, "Connection: close"]


# A second request inside the first one's body: whoever miscounts lengths answers it, too.
INNER = "GET /tell/smuggled HTTP/1.1\r\nHost: chat.test\r\n\r\n"

SMUGGLING = [
    Row("length and chunks", post("Content-Length: 6", "Transfer-Encoding: chunked"), [400], f"0\r\n\r\n{INNER}"),
    Row("chunks and length", post("Transfer-Encoding: chunked", "Content-Length: 6"), [400], f"0\r\n\r\n{INNER}"),
    Row("two lengths", post("Content-Length: 0", f"Content-Length: {len(INNER)}"), [400], INNER),
    Row("the same length twice", post("Content-Length: 3", "Content-Length: 3"), [400], "a=b"),
    Row("a list of lengths", post("Content-Length: 3, 3"), [400], "a=b"),
    Row("a signed length", post("Content-Length: +3"), [400], "a=b"),
    Row("a negative length", post("Content-Length: -1"), [400]),
    Row("a hexadecimal length", post("Content-Length: 0x3"), [400], "a=b"),
    Row("an endless length", post("Content-Length: 99999999999999999999"), [400]),
    Row("an unknown coding", post("Transfer-Encoding: xchunked"), [400, 501], f"0\r\n\r\n{INNER}"),
    Row("a coding before chunked", post("Transfer-Encoding: gzip, chunked"), [400, 501], "0\r\n\r\n"),
    Row("chunked twice", post("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), [400, 501], "0\r\n\r\n"),
    Row("chunked behind a tab", post("Transfer-Encoding:\tchunked"), [400, 501], "0\r\n\r\n"),
    Row("a blank before the colon", post("Transfer-Encoding : chunked"), [400], f"0\r\n\r\n{INNER}"),
    Row("a bad chunk", post("Transfer-Encoding: chunked"), [400], "zz\r\nhello\r\n0\r\n\r\n"),
    Row("an endless chunk", post("Transfer-Encoding: chunked"), [400, 413], "ffffffffffffffff1\r\nx"),
    Row(
        "good chunks",
        post("Transfer-Encoding: chunked", "Content-Type: text/plain"),
        [200],
        "5\r\nhello\r\n0\r\n\r\n",
        {"body": "hello", "method": "POST"},
    ),
    Row(
        "chunks with an extension and a trailer",
        post("Transfer-Encoding: chunked", "Content-Type: text/plain"),
        [200],
        "5;a=b\r\nhello\r\n0\r\nX-Forwarded-For: 203.0.113.7\r\n\r\n",
        {"body": "hello"},
        ("203.0.113.7",),
    ),
    Row(
        "chunks in HTTP/1.0",
        ["POST /tell HTTP/1.0", f"Host: {DOMAIN}", "Transfer-Encoding: chunked"],
        [400, 411],
        "0\r\n\r\n",
    ),
    Row(
        "a body of a GET stays a body",
        get("/tell", f"Content-Length: {len(INNER)}", "Content-Type: text/plain"),
        [200],
        INNER,
        {"body": INNER},
    ),
]

MALFORMED = [
    Row("two hosts", ["GET / HTTP/1.1", f"Host: {DOMAIN}", "Host: evil.test"], [400]),
    Row("the same host twice", ["GET / HTTP/1.1", f"Host: {DOMAIN}", f"Host: {DOMAIN}"], [400]),
    Row("no host", ["GET / HTTP/1.1", "Connection: close"], [400]),
    Row("an empty host", get("/", host=""), [400, CLOSED]),
    Row("another host", get("/", host="evil.test"), [CLOSED]),
    Row("a host in HTTP/1.0 that is none of ours", ["GET / HTTP/1.0"], [CLOSED]),
    Row("a host with a path", get("/", host="chat.test/evil"), [400, CLOSED]),
    Row("a host with a user", get("/", host="chat.test@evil.test"), [400, CLOSED]),
    Row("a blank in a host", get("/", host="chat.test evil.test"), [400, CLOSED]),
    Row("a folded header", ["GET / HTTP/1.1", f"Host: {DOMAIN}", "X-A: b", " c: d"], [400]),
    Row("a folded first header", ["GET / HTTP/1.1", f" Host: {DOMAIN}", "X-A: b"], [400]),
    Row("a header without a colon", ["GET / HTTP/1.1", f"Host: {DOMAIN}", "nonsense", "Connection: close"], [200, 400]),
    Row("a zero byte", get("/", "X-A: b\0c"), [400]),
    Row(
        "a zero byte in a path",
        get(
            "/tell%00",
        ),
        [400],
    ),
    Row("no version", ["GET /"], [400, CLOSED]),
    Row("an old version", [f"GET / HTTP/0.9\r\nHost: {DOMAIN}"], [400, 505, CLOSED]),
    Row("a new version", [f"GET / HTTP/3.0\r\nHost: {DOMAIN}"], [400, 505]),
    Row("a method of small letters", [f"get / HTTP/1.1\r\nHost: {DOMAIN}"], [400]),
    Row("TRACE", [f"TRACE / HTTP/1.1\r\nHost: {DOMAIN}"], [405]),
    Row("CONNECT", ["CONNECT evil.test:443 HTTP/1.1", "Host: evil.test:443"], [400, 405, CLOSED]),
    Row("a long line", get("/" + "x" * 40000), [414]),
    Row("a long header", get("/", "X-A: " + "x" * 40000), [400, 431]),
    Row("an upgrade to HTTP/2", get("/tell", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"), [200], unseen=("h2c",)),
    Row("the preface of HTTP/2", ["PRI * HTTP/2.0", "", "SM"], [400, 505, CLOSED]),
]

FORGED = [
    Row("Script-Name", get("/tell", "Script-Name: /evil"), [200], seen={"path": "/tell"}, unseen=("/evil",)),
    Row("SCRIPT_NAME", get("/tell", "SCRIPT_NAME: /tell"), [200], seen={"path": "/tell"}),
    Row("underscores", get("/tell", "X_Forwarded_For: 203.0.113.7"), [200], unseen=("203.0.113.7",)),
    Row("X-Forwarded-For", get("/tell", "X-Forwarded-For: 203.0.113.7"), [200], unseen=("203.0.113.7",)),
    Row("X-Forwarded-Proto", get("/tell", "X-Forwarded-Proto: https"), [200], seen={"secure": False}),
    Row(
        "X-Forwarded-Ssl",
        get("/tell", "X-Forwarded-Ssl: on", "X-Forwarded-Protocol: ssl"),
        [200],
        seen={"secure": False},
    ),
    Row(
        "X-Forwarded-Host",
        get("/tell", "X-Forwarded-Host: evil.test"),
        [200],
        seen={"host": DOMAIN},
        unseen=("evil.test",),
    ),
    Row("X-Forwarded-Port", get("/tell", "X-Forwarded-Port: 8443"), [200], seen={"host": DOMAIN}, unseen=("8443",)),
    Row(
        "X-Forwarded-Prefix",
        get("/tell", "X-Forwarded-Prefix: /evil"),
        [200],
        seen={"path": "/tell"},
        unseen=("/evil",),
    ),
    Row(
        "Forwarded",
        get("/tell", "Forwarded: for=203.0.113.7;host=evil.test;proto=https"),
        [200],
        unseen=("203.0.113.7", "evil"),
    ),
    Row("Daphne-Root-Path", get("/tell", "Daphne-Root-Path: /evil"), [200], seen={"path": "/tell"}, unseen=("/evil",)),
    Row(
        "Daphne-Root-Path to Daphne",
        get("/ws/tell", "Daphne-Root-Path: /evil"),
        [200],
        seen={"path": "/ws/tell"},
        unseen=("/evil",),
    ),
    Row(
        "X-Real-IP",
        get("/tell", "X-Real-IP: 203.0.113.7", "True-Client-IP: 203.0.113.7"),
        [200],
        unseen=("203.0.113.7",),
    ),
    Row(
        "X-Original-URL", get("/tell", "X-Original-URL: /admin/", "X-Rewrite-URL: /admin/"), [200], unseen=("/admin/",)
    ),
    Row("Remote-User", get("/tell", "Remote-User: root", "X-Remote-User: root"), [200], unseen=("root",)),
    Row("Proxy", get("/tell", "Proxy: http://evil.test:3128"), [200], unseen=("evil.test",)),
    Row(
        "an absolute target is the one that counts",
        [f"GET http://{DOMAIN}/tell HTTP/1.1", "Host: evil.test", "Connection: close"],
        [200, 400, CLOSED],
        unseen=("evil.test",),
    ),
    Row("an absolute target elsewhere", ["GET http://evil.test/tell HTTP/1.1", f"Host: {DOMAIN}"], [400, CLOSED]),
    Row("an absolute target of a file", [f"GET file:///etc/passwd HTTP/1.1\r\nHost: {DOMAIN}"], [400, CLOSED]),
]

# Around the aliases of static and uploaded files. None may be a file beside them: units/gunicorn.conf.py is there for Nginx to read.
BESIDE = [
    "/static/../{}",
    "/static/%2e%2e/{}",
    "/static/..%2f{}",
    "/static/%2e%2e%2f{}",
    "/static../{}",
    "/static..%2f{}",
    "/static/..;/{}",
    "/static/%252e%252e/{}",
    "/static/..\\{}",
    "/static/%5c..%5c{}",
    "/static//../../{}",
    "/static/./../{}",
    "//static/../{}",
    "/media/../../current/{}",
    "/media/%2e%2e/%2e%2e/current/{}",
    "/media/..%2f..%2fcurrent/{}",
    "/media../current/{}",
    "/quintet-errors/../../{}",
    "/static/chat/../../../{}",
]
NOT_FILES = [
    "/quintet-static-pool/static/chat/chat.css",
    "/quintet-errors/404.html",
    "/static/.hidden",
    "/media/.hidden",
    "/static/",
    "/media/",
    "/static/chat/",
    "/static",
]
OUTSIDE = [
    *(Row(path, get(path.format("units/gunicorn.conf.py")), [400, 404]) for path in BESIDE),
    *(Row(path, get(path), [301, 403, 404]) for path in NOT_FILES),
]


@pytest.mark.parametrize("row", [*SMUGGLING, *MALFORMED, *FORGED, *OUTSIDE], ids=lambda row: row.name)
def test_a_request_gets_what_it_must(row: Row) -> None:
    request = "\r\n".join(row.lines) + "\r\n\r\n" + row.body
    received = exchange(request.encode("latin-1"))
    found = statuses(received)
    assert len(found) == 1, f"more than one answer to one request: {found}"
    assert found[0] in row.right, received[:600]
    assert b"smuggled" not in received or row.seen, "the request in the body was answered"
    if row.seen or row.unseen:
        if found[0] != 200:
            return
        told = json.loads(received.partition(b"\r\n\r\n")[2].partition(b"{")[2].rpartition(b"}")[0].join([b"{", b"}"]))
        for key, value in row.seen.items():
            assert told[key] == value, told
        environment = json.dumps(told["environment"])
        for claim in row.unseen:
            assert claim not in environment, environment
        assert told["environment"]["REMOTE_ADDR"] != "203.0.113.7"


def test_a_client_is_named_by_nginx_alone() -> None:
    told = SITE.get("/tell", {"X-Forwarded-For": "203.0.113.7", "X-Real-IP": "203.0.113.7"}).json["environment"]
    assert told["HTTP_X_FORWARDED_FOR"] == told["HTTP_X_REAL_IP"]
    assert told["HTTP_X_FORWARDED_FOR"] not in ("", "203.0.113.7")


# ---- headers and pages of errors ----------------------------------------------------------------------------------

HEADERS = ("x-content-type-options", "x-frame-options", "referrer-policy", "content-security-policy")


def headers_of(path: str) -> dict[str, list[str]]:
    """Return the values of the security headers of an answer, each as often as it came."""
    head = exchange("\r\n".join(get(path)).encode() + b"\r\n\r\n").partition(b"\r\n\r\n")[0].decode("latin-1")
    lines = [line.partition(": ")[::2] for line in head.split("\r\n")[1:]]
    return {name: [value for key, value in lines if key.lower() == name] for name in HEADERS}


def test_the_edge_adds_what_the_app_has_not_sent_and_doubles_nothing() -> None:
    page = headers_of("/")
    assert all(len(values) == 1 for values in page.values()), page
    assert (page["x-frame-options"], page["referrer-policy"]) == (["DENY"], ["same-origin"]), "Django's own"
    assert page["content-security-policy"][0].startswith("default-src 'none'; script-src 'self'")
    for path in ("/static/nothing.css", "/media/nothing.png"):
        found = headers_of(path)
        assert found["x-content-type-options"] == ["nosniff"], found
        assert found["x-frame-options"] == ["SAMEORIGIN"], found
        assert found["referrer-policy"] == ["strict-origin-when-cross-origin"], found
    style = HOST.run("sh", "-c", "ls /srv/chat/current/static/chat/*.css").split()[0].removeprefix("/srv/chat/current")
    found = headers_of(style)
    assert (found["x-content-type-options"], found["x-frame-options"]) == (["nosniff"], ["SAMEORIGIN"])


@pytest.mark.parametrize("status", [404, 429, 500, 502, 503, 504])
def test_an_error_of_the_apps_stays_its_own(status: int) -> None:
    answer = SITE.get(f"/fail/{status}")
    assert (answer.status, answer.body) == (status, "the app's own")
    assert answer.headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize(("accept", "kind"), [("text/html", "text/html"), ("application/json", "application/json")])
def test_a_missing_file_gets_our_page(accept: str, kind: str) -> None:
    answer = SITE.get("/static/nothing.css", {"Accept": accept})
    assert answer.status == 404
    assert answer.headers["content-type"].startswith(kind)
    assert "There is nothing at this address." in answer.body
    assert len(answer.body) < 1024
    assert "http" not in answer.body.replace("</html>", ""), "it needs nothing from elsewhere"


def test_an_app_that_is_away_gets_our_page() -> None:
    unit = f"gunicorn-chat@{HOST.current('chat')}"
    HOST.run("systemctl", "stop", f"{unit}.socket", f"{unit}.service")
    try:
        answer = SITE.get("/", {"Accept": "application/json"})
    finally:
        HOST.run("systemctl", "start", f"{unit}.socket", f"{unit}.service")
    assert (answer.status, answer.headers["retry-after"]) == (502, "10")
    assert answer.json["error"] == "The site is busy"
    assert SITE.get("/").status == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://chat.test", 101),
        ("https://chat.test:8443", 101),
        ("http://evil.test", 403),
        ("", 403),
        ("http://chat.test.evil.test", 403),
        ("http://evil-chat.test", 403),
        ("null", 403),
    ],
)
def test_the_edge_asks_for_the_origin_of_a_websocket(origin: str, status: int) -> None:
    lines = get("/ws/health/", *([f"Origin: {origin}"] if origin else []), "Upgrade: websocket")[:-1]
    lines += ["Connection: Upgrade", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]
    with socket.create_connection((HOST.address, 80), timeout=SECONDS) as connection:
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n")
        received = connection.recv(4096)
    assert statuses(received) == [status]
    # Nginx's own refusal: the app, which would refuse as well, was not asked.
    assert status == 101 or (b"Server: nginx" in received and b"Daphne" not in received)
