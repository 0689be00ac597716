"""Probes and the WebSocket client against real servers on unix sockets, and the words of their messages."""

import asyncio
import base64
import datetime
import hashlib
import http.server
import json
import socket
import socketserver
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import host_support
import pytest
import websockets
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from quintet_host.probes import Endpoint, Probe, Result, load, run
from quintet_host.websocket import ACCEPT_SUFFIX, ClosedError, WebSocket, WebSocketError
from websockets.asyncio.server import ServerConnection, unix_serve
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

GENERATION = "1f0c2a9e-77aa01bc"


def self_signed(directory: Path) -> tuple[Path, Path]:
    """Make a certificate and its key; nobody looks at whose it is."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    certificate, private = directory / "certificate.pem", directory / "key.pem"
    certificate.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate, private


def http_probe(**more: Any) -> Probe:
    return Probe(
        **{"name": "health", "kind": "http", "path": "/healthz", "host": "chat.example.org", "status": 200, **more}
    )


def socket_probe(**more: Any) -> Probe:
    given = {"name": "socket", "kind": "websocket", "path": "/ws/health/", "host": "chat.example.org", "status": 101}
    return Probe(**{**given, "send": {"type": "ping"}, "expected": {"type": "pong"}, "timeout_seconds": 5, **more})


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers /healthz with what it was asked, and a few paths with trouble."""

    def do_GET(self) -> None:
        if self.path == "/cut":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort")
            return
        status, body = {
            "/sick": (503, json.dumps({"status": "bad", "generation": GENERATION, "more": "x" * 500})),
            "/page": (200, "<h1>Rooms</h1>"),
        }.get(self.path, (200, json.dumps(self.echo())))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    do_PUT = do_GET

    def echo(self) -> dict[str, Any]:
        return {"status": "ok", "generation": GENERATION, "method": self.command, "headers": dict(self.headers)}

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: Any) -> None:
        pass


class UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Endpoint]:
    """A plain HTTP server on a unix socket."""
    path = tmp_path / "s"
    with UnixServer(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield Endpoint(path=path)
        server.shutdown()
        thread.join()


def test_an_http_probe_that_passes(web: Endpoint) -> None:
    result = run(http_probe(expected={"status": "ok"}), web)
    assert (result.ok, result.message, result.generation) == (True, "GET /healthz: as wanted", GENERATION)


def test_what_an_http_probe_sends(web: Endpoint) -> None:
    wanted = {
        "Host": "chat.example.org",
        "User-Agent": "quintet-probe",
        "X-Forwarded-Proto": "https",
        "X-Extra": "1",
        "Connection": "close",
        "Accept-Encoding": "identity",
    }
    result = run(http_probe(scheme="https", headers={"X-Extra": "1"}, expected={"headers": wanted}), web)
    assert result.ok, result.message


def test_the_method_and_the_origin_are_the_probes(web: Endpoint) -> None:
    probe = http_probe(method="PUT", origin="https://other.example", text='"Origin": "https://other.example"')
    assert run(replace(probe, expected={"method": "PUT"}), web).ok
    assert not run(replace(probe, expected={"method": "GET"}), web).ok


def test_through_the_edge_no_forwarding_header_is_made_up(tmp_path: Path) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        endpoint = Endpoint(address="127.0.0.1", port=server.server_port)
        result = run(http_probe(text="chat.example.org"), endpoint)
        forwarded = run(http_probe(text="X-Forwarded-Proto"), endpoint)
        server.shutdown()
        thread.join()
    assert result.ok
    assert result.message == f"GET /healthz through 127.0.0.1:{endpoint.port}: as wanted"
    assert not forwarded.ok


def test_through_an_edge_with_tls_the_probes_host_is_asked_for(tmp_path: Path) -> None:
    asked: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*self_signed(tmp_path))
    context.sni_callback = lambda _connection, name, _context: asked.append(name)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        endpoint = Endpoint(address="127.0.0.1", port=server.server_port, tls=True)
        results = [
            run(http_probe(host=host), endpoint) for host in ("chat.example.org", "127.0.0.1", "[::1]", "a.test:8443")
        ]
        server.shutdown()
        thread.join()
    assert all(result.ok for result in results), results
    assert asked == ["chat.example.org", None, None, "a.test"], "an address is no name"


def test_an_edge_that_refuses_the_name_is_a_failed_probe() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        result = run(http_probe(), Endpoint(address="127.0.0.1", port=server.server_port, tls=True))
        server.shutdown()
        thread.join()
    assert not result.ok
    assert "GET /healthz through 127.0.0.1:" in result.message


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        (http_probe(path="/sick"), 'GET /sick: got 503 {"status": "bad", "generation": '),
        (http_probe(status=404), "instead of 404"),
        (http_probe(path="/sick", status=None), "instead of a status below 500"),
        (http_probe(expected={"status": "fine"}), 'instead of "status": "fine"'),
        (http_probe(expected={"absent": None}), 'instead of "absent": null'),
        (http_probe(path="/page", expected={"status": "ok"}), 'got 200 <h1>Rooms</h1> instead of "status": "ok"'),
        (http_probe(path="/page", text="Chat"), "got 200 <h1>Rooms</h1> instead of a text with 'Chat'"),
        (http_probe(path="/cut"), "IncompleteRead"),
    ],
)
def test_an_http_probe_that_fails_says_what_it_got_instead_of_what(web: Endpoint, probe: Probe, message: str) -> None:
    result = run(probe, web)
    assert not result.ok
    assert message in result.message
    assert " got " in result.message
    assert " instead of " in result.message
    assert len(result.message) < 300


def test_a_wrong_answer_still_names_its_generation(web: Endpoint) -> None:
    assert run(http_probe(path="/sick"), web).generation == GENERATION


def test_a_text_that_is_there(web: Endpoint) -> None:
    assert run(http_probe(path="/page", text="Rooms"), web).ok


@pytest.mark.parametrize("probe", [http_probe(), socket_probe()])
def test_nobody_listens(tmp_path: Path, probe: Probe) -> None:
    missing = run(probe, Endpoint(path=tmp_path / "s"))
    assert "got 'No such file or directory' at" in missing.message
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "s"))
        refused = run(probe, Endpoint(path=tmp_path / "s"))
    assert f"got 'Connection refused' at {tmp_path}/s instead of {probe.wanted}" in refused.message


@pytest.mark.parametrize("probe", [http_probe(timeout_seconds=0.05), socket_probe(timeout_seconds=0.05)])
def test_no_answer_in_time(tmp_path: Path, probe: Probe) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "s"))
        silent.listen()
        result = run(probe, Endpoint(path=tmp_path / "s"))
    assert f"got no answer within 0.05 s instead of {probe.wanted}" in result.message


# The WebSocket client against the server of `websockets`.


async def converse(connection: ServerConnection) -> None:
    await connection.send(json.dumps({"type": "history", "messages": []}))
    async for message in connection:
        received = json.loads(message)
        if received["type"] == "large":
            await connection.send(json.dumps({"type": "large", "text": "x" * received["size"]}))
        elif received["type"] == "fragments":
            await connection.send(['{"type":', ' "frag', 'ments"}'])
        elif received["type"] == "ping":
            await (await connection.ping())  # answered by the client while it waits for the message
            await connection.send(json.dumps({"type": "pong", "generation": GENERATION}))
        elif received["type"] == "leave":
            await connection.close(1012, "service restart")


def admit(_connection: ServerConnection, request: Request) -> Response | None:
    if request.headers.get("Origin") == "http://evil.example":
        return Response(403, "Forbidden", websockets.Headers({"Content-Length": "6"}), b"origin")
    return None


def choose(_connection: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    return Subprotocol("chat") if "chat" in offered else None


def against_websockets(path: Path, *probes: Probe) -> list[Result]:
    async def go() -> list[Result]:
        server = await unix_serve(converse, str(path), process_request=admit, select_subprotocol=choose)
        async with server:
            return [await asyncio.to_thread(run, probe, Endpoint(path=path)) for probe in probes]

    return asyncio.run(go())


def test_a_websocket_probe_that_passes_over_greeting_and_ping(tmp_path: Path) -> None:
    [result] = against_websockets(tmp_path / "s", socket_probe())
    assert (result.ok, result.message, result.generation) == (True, "WebSocket /ws/health/: as wanted", GENERATION)


def test_long_and_fragmented_messages_and_subprotocols(tmp_path: Path) -> None:
    results = against_websockets(
        tmp_path / "s",
        socket_probe(send={"type": "large", "size": 300, "filler": "y" * 300}, expected={"type": "large"}),
        socket_probe(send={"type": "large", "size": 70_000, "filler": "y" * 70_000}, expected={"type": "large"}),
        socket_probe(send={"type": "fragments"}, expected={"type": "fragments"}),
        socket_probe(subprotocol="chat"),
        socket_probe(send=None, expected={"type": "history"}),
        socket_probe(send=None, expected=None),
        socket_probe(send=None, expected=None, text='"messages": []'),
    )
    assert [result.ok for result in results] == [True] * 7, results


def test_websocket_probes_that_fail_say_what_they_got_instead_of_what(tmp_path: Path) -> None:
    refused, wanted_refusal, other_refusal, other_text, silent, left, protocol, opened = against_websockets(
        tmp_path / "s",
        socket_probe(origin="http://evil.example"),
        socket_probe(origin="http://evil.example", status=403, expected=None, text="origin"),
        socket_probe(origin="http://evil.example", status=403, expected=None, text="banned"),
        socket_probe(send=None, expected=None, text="pong", timeout_seconds=0.1),
        socket_probe(send=None, timeout_seconds=0.1),
        socket_probe(send={"type": "leave"}),
        socket_probe(subprotocol="other"),
        socket_probe(status=403),
    )
    assert refused.message == "WebSocket /ws/health/: got 403 origin instead of 101"
    assert wanted_refusal.ok
    assert other_refusal.message == "WebSocket /ws/health/: got 403 origin instead of a text with 'banned'"
    assert "within 0.1 s instead of a text with 'pong'" in other_text.message
    assert silent.message == (
        'WebSocket /ws/health/: got {"type": "history", "messages": []} within 0.1 s instead of {"type": "pong"}'
    )
    assert left.message == 'WebSocket /ws/health/: got close 1012 service restart instead of {"type": "pong"}'
    assert "instead of 101" in protocol.message
    assert opened.message == "WebSocket /ws/health/: got 101 instead of 403"
    assert not any(one.ok for one in (refused, other_refusal, other_text, silent, left, protocol, opened))


def test_the_server_sees_a_clean_end(tmp_path: Path) -> None:
    codes: list[int | None] = []

    async def watch(connection: ServerConnection) -> None:
        await converse(connection)
        codes.append(connection.close_code)

    async def go() -> None:
        async with unix_serve(watch, str(tmp_path / "s")):
            await asyncio.to_thread(run, socket_probe(), Endpoint(path=tmp_path / "s"))

    asyncio.run(go())
    assert codes == [1000]


# The client's view of a server that misbehaves: bytes as written here.


@contextmanager
def scripted(script: Callable[[socket.socket, bytes], None]) -> Iterator[WebSocket]:
    """Yield a client connected to a server that reads the handshake and then does what the script says."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with theirs:
            request = b""
            while not request.endswith(b"\r\n\r\n"):
                request += theirs.recv(4096)
            script(theirs, request)

    thread = threading.Thread(target=serve)
    thread.start()
    with ours:
        yield WebSocket(ours, time.monotonic() + 5)
    thread.join()


def accept(request: bytes) -> bytes:
    [key] = [line[19:] for line in request.split(b"\r\n") if line.startswith(b"Sec-WebSocket-Key: ")]
    answer = base64.b64encode(hashlib.sha1(key + ACCEPT_SUFFIX).digest())
    return b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: " + answer + b"\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: no\r\n\r\n", "wrong Sec-WebSocket-Accept"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "no HTTP response"),
        (b"", "closed before the handshake was answered"),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\ngone", "502 gone"),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 900\r\n\r\ngone", "502 gone"),
    ],
)
def test_a_bad_handshake(answer: bytes, words: str) -> None:
    with (
        scripted(lambda peer, _request: peer.sendall(answer)) as client,
        pytest.raises(WebSocketError, match=words),
    ):
        client.open("/", {"Host": "x"})


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (b"\x81\x81mask\x00", "masked frame"),
        (b"\xc1\x01x", "reserved bits"),
        (b"\x83\x01x", "unknown kind 3"),
        (b"\x80\x01x", "fragment out of order"),
        (b"\x01\x01x\x81\x01y", "fragment out of order"),
        (b"\x81\x7f" + struct.pack("!Q", 2**40), "above"),
        (b"\x81", "close 1006"),
        (b"\x88\x00", "close 1005"),
        (b"\x88\x02\x03\xf4", "close 1012"),
    ],
)
def test_bad_frames_and_closes(frames: bytes, words: str) -> None:
    with scripted(lambda peer, request: peer.sendall(accept(request) + frames)) as client:
        client.open("/", {"Host": "x"})
        with pytest.raises(WebSocketError, match=words):
            client.receive()


def test_a_ping_between_fragments_is_answered_masked() -> None:
    seen: list[bytes] = []

    def script(peer: socket.socket, request: bytes) -> None:
        peer.sendall(accept(request) + b"\x01\x02on\x89\x02hi\x80\x01e")
        seen.append(peer.recv(8, socket.MSG_WAITALL))

    with scripted(script) as client:
        client.open("/", {"Host": "x"})
        assert client.receive() == "one"
    assert seen[0][:2] == b"\x8a\x82"
    mask, payload = seen[0][2:6], seen[0][6:]
    assert bytes(byte ^ mask[index] for index, byte in enumerate(payload)) == b"hi"


def test_a_close_keeps_its_code() -> None:
    with scripted(lambda peer, request: peer.sendall(accept(request) + b"\x88\x06\x03\xf4gone")) as client:
        client.open("/", {"Host": "x"})
        with pytest.raises(ClosedError) as caught:
            client.receive()
    assert (caught.value.code, caught.value.reason) == (1012, "gone")


def test_without_a_status_any_below_500_will_do(web: Endpoint) -> None:
    assert run(http_probe(status=None), web).ok
    assert http_probe(status=None).accepts(404)
    assert not http_probe(status=None).accepts(500)


def test_the_file_of_the_contract_is_understood(tmp_path: Path) -> None:
    document = (Path(__file__).parents[2] / "docs/architecture.md").read_text()
    section = document.split("`probes.json`:", 1)[1].split("```json\n", 1)[1].split("```", 1)[0]
    here = host_support.machine(tmp_path)
    (tmp_path / "etc/quintet/shop/probes.json").write_text(section)
    found = load(here.layout, "shop")
    assert found.edges == (Endpoint(address="127.0.0.1", port=443, tls=True),)
    health, opened = found.probes
    assert (health.name, health.kind, health.expected, health.status) == ("health", "http", {"status": "ok"}, 200)
    assert (opened.kind, opened.send, opened.status) == ("websocket", {"type": "ping"}, HTTPStatus.SWITCHING_PROTOCOLS)
    assert opened.origin == "https://chat.example.org"
