"""TLS at the edge, from outside and by other people's tools (Molecule scenario tls)."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import ssl
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from hosts import ROOT, Host, Site, play, play_well, receive, wait_for
from secure import AUTHORITY, SecureSite, chat, provided, shop, visited
from websockets.exceptions import InvalidStatus

HOSTS = [Host(name) for name in os.environ.get("TLS_HOSTS", "quintet-tls-bookworm quintet-tls-trixie").split()]
BOOKWORM, TRIXIE = HOSTS[0], HOSTS[-1]
CERTIFICATES = "/etc/nginx/quintet-tls"
ROOM = "/ws/rooms/lobby/"
HSTS = "strict-transport-security"


@pytest.fixture(params=HOSTS, ids=lambda host: host.name)
def host(request: pytest.FixtureRequest) -> Host:
    found: Host = request.param
    return found


def curl(host: Host, *arguments: str) -> str:
    """Run curl on the host itself, which trusts its authority alone and knows the sites' addresses."""
    names = [part for name in ("chat", "shop", "unknown") for part in ("--resolve", f"{name}.test:443:127.0.0.1")]
    return host.run(
        "curl", "--silent", "--show-error", "--include", "--cacert", AUTHORITY, *names, *arguments, check=False
    )


# ---- testssl takes its time, so it begins before all else and is asked for before anything changes -----------------


@pytest.fixture(scope="module", autouse=True)
def grading() -> Iterator[subprocess.Popen[str]]:
    TRIXIE.run("sh", "-c", "grep -q chat.test /etc/hosts || echo 127.0.0.1 chat.test >> /etc/hosts")
    command = [
        "testssl",
        "--quiet",
        "--warnings=batch",
        "--color=0",
        "--nodns=none",
        f"--add-ca={AUTHORITY}",
        "https://chat.test",
    ]
    process = subprocess.Popen(
        ["docker", "exec", TRIXIE.name, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    yield process
    if process.poll() is None:
        process.kill()


# ---- who the site is --------------------------------------------------------------------------------------------------


def test_the_chains_end_at_the_authorities_that_must_have_signed_them(host: Host) -> None:
    assert chat(host).get("/healthz").json["status"] == "ok"
    assert shop(host).get("/").json["host"] == "shop.test"
    for site, other in ((chat(host), shop(host)), (shop(host), chat(host))):
        with pytest.raises(ssl.SSLCertVerificationError):
            SecureSite(host, site.domain, authority=other.authority).get("/")
    names = sorted(value for kind, value in chat_certificate(host)["subjectAltName"] if kind == "DNS")
    assert names == ["chat.test", "www.chat.test"]


def chat_certificate(host: Host) -> dict[str, Any]:
    with chat(host).connected() as connection:
        found: dict[str, Any] = connection.getpeercert() or {}
    return found


@pytest.mark.parametrize("name", ["unknown.test", "bare.test", "sub.chat.test", None])
def test_for_other_names_no_certificate_is_shown(host: Host, name: str | None) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"):
        chat(host).connected(context, name)


def test_a_request_for_another_host_than_tls_was_asked_for_gets_nothing(host: Host) -> None:
    with pytest.raises(http.client.RemoteDisconnected):
        chat(host).get("/", {"Host": "unknown.test"})
    told = curl(host, "--header", "Host: unknown.test", "https://chat.test/")
    assert re.match(r"HTTP/2 421|curl: \(92\)", told), told


# ---- what is spoken ---------------------------------------------------------------------------------------------------


def client(version: ssl.TLSVersion, ciphers: str = "ALL:@SECLEVEL=0") -> ssl.SSLContext:
    """A client that can do that version alone and takes what it gets."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers(ciphers)
    context.minimum_version = context.maximum_version = version
    return context


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_old_versions_are_refused(host: Host, version: ssl.TLSVersion) -> None:
    for site in (chat(host), shop(host)):
        with pytest.raises(ssl.SSLError, match=r"PROTOCOL_VERSION|HANDSHAKE_FAILURE"):
            site.connected(client(version))


def test_tls_1_2_is_for_the_intermediate_profile(host: Host) -> None:
    with chat(host).connected(client(ssl.TLSVersion.TLSv1_2)) as connection:
        assert connection.version() == "TLSv1.2"
        assert str((connection.cipher() or [""])[0]).startswith("ECDHE-ECDSA-")
        assert connection.session
        assert not connection.session.has_ticket
    with pytest.raises(ssl.SSLError, match=r"HANDSHAKE_FAILURE|PROTOCOL_VERSION"):
        shop(host).connected(client(ssl.TLSVersion.TLSv1_2))
    for site in (chat(host), shop(host)):
        with site.connected(client(ssl.TLSVersion.TLSv1_3)) as connection:
            assert connection.version() == "TLSv1.3"


@pytest.mark.parametrize(
    "ciphers", ["ECDHE-ECDSA-AES128-SHA256", "ECDHE-ECDSA-AES256-SHA", "AES128-GCM-SHA256", "DHE-RSA-AES128-GCM-SHA256"]
)
def test_ciphers_without_forward_secrecy_or_authentication_are_refused(host: Host, ciphers: str) -> None:
    with pytest.raises(ssl.SSLError, match="HANDSHAKE_FAILURE"):
        chat(host).connected(client(ssl.TLSVersion.TLSv1_2, f"{ciphers}:@SECLEVEL=0"))


def test_http_2_everywhere_and_http_3_where_nginx_has_it(host: Host) -> None:
    answer = curl(host, "https://chat.test/healthz")
    assert answer.startswith("HTTP/2 200"), answer
    has_http3 = "http_v3_module" in host.run("sh", "-c", "nginx -V 2>&1")
    assert has_http3 is (host == TRIXIE)
    assert ('alt-svc: h3=":443"; ma=3600' in answer) is has_http3
    assert curl(host, "--http1.1", "https://chat.test/healthz").startswith("HTTP/1.1 200")


def test_http_3_reaches_the_app_like_any_other() -> None:
    page = curl(TRIXIE, "--http3-only", "https://chat.test/")
    assert page.startswith("HTTP/3 200"), page
    assert f"{HSTS}: max-age=63072000" in page
    assert curl(TRIXIE, "--http3-only", "https://chat.test/static/none").startswith("HTTP/3 404")
    assert "HTTP/" not in curl(TRIXIE, "--http3-only", "--insecure", "https://unknown.test/")


def test_where_openssl_has_it_keys_are_agreed_on_against_quantum_computers() -> None:
    told = TRIXIE.run(
        "sh", "-c", "openssl s_client -connect 127.0.0.1:443 -servername chat.test </dev/null 2>/dev/null"
    )
    assert "Negotiated TLS1.3 group: X25519MLKEM768" in told


def test_sslyze_says_compliant(host: Host) -> None:
    for site, profile in ((chat(host), "intermediate"), (shop(host), "modern")):
        assert f"{site.domain}:443: OK - Compliant." in sslyze(site, profile)
    # Its exit code says little; that the word can be missed, this shows.
    assert "FAILED - Not compliant" in sslyze(chat(host), "modern")


def sslyze(site: SecureSite, profile: str) -> str:
    authority = provided(f"{site.host.name}-{site.domain}.pem")
    authority.write_text(site.authority)
    command = [
        str(ROOT / ".cache/sslyze/bin/sslyze"),
        "--certinfo_ca_file",
        str(authority),
        "--mozilla_config",
        profile,
    ]
    done = subprocess.run(
        [*command, f"{site.domain}:443{{{site.host.address}}}"], capture_output=True, text=True, check=False, timeout=60
    )
    return done.stdout + done.stderr


# ---- plain HTTP -------------------------------------------------------------------------------------------------------


def test_plain_http_leads_to_the_same_place_with_method_and_body(host: Host) -> None:
    for domain in ("chat.test", "www.chat.test", "shop.test"):
        for method in ("GET", "POST"):
            answer = Site(host, domain).request(method, "/rooms/lobby/?a=b", body="x" if method == "POST" else None)
            assert (answer.status, answer.headers["location"]) == (308, f"https://{domain}/rooms/lobby/?a=b")
            assert HSTS not in answer.headers, "over plain HTTP it would be anybody's word"
    alias = SecureSite(host, "www.chat.test", authority=chat(host).authority).get("/rooms/lobby/?a=b")
    assert (alias.status, alias.headers["location"]) == (308, "https://chat.test/rooms/lobby/?a=b")
    assert alias.headers[HSTS] == "max-age=63072000"


def test_a_site_without_tls_is_as_it_was(host: Host) -> None:
    answer = Site(host, "bare.test").get("/")
    assert (answer.status, answer.json["host"]) == (200, "bare.test")
    assert not {HSTS, "alt-svc"} & set(answer.headers)
    assert "HTTPS_ONLY" not in answer.json["names"]
    assert "HTTPS_ONLY" in shop(host).get("/").json["names"]
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        Site(host, "unknown.test").get("/")


def test_hsts_is_on_every_kind_of_answer(host: Host) -> None:
    site = chat(host)
    style = re.search(r'/static/[^"]+[.]css', site.get("/").body)
    assert style
    for path, status in {
        "/": 200,
        "/healthz": 200,
        style[0]: 200,
        "/static/none.css": 404,
        "/media/none.png": 404,
        "/nowhere": 404,
        "/ws/none/": 404,
        "/%": 400,
    }.items():
        answer = site.get(path)
        assert (answer.status, answer.headers.get(HSTS)) == (status, "max-age=63072000"), path
    large = site.request("POST", "/name", headers={"Content-Length": str(2**30)})
    assert (large.status, large.headers[HSTS]) == (413, "max-age=63072000")
    with pytest.raises(InvalidStatus) as refused:
        site.websocket("/ws/health/", origin="https://evil.test")
    assert refused.value.response.headers[HSTS] == "max-age=63072000"
    assert shop(host).get("/").headers[HSTS] == "max-age=300", "short by default"


def test_hsts_is_on_pages_of_maintenance_and_of_a_dead_app() -> None:
    site = shop(BOOKWORM)
    units = f"gunicorn-shop@{BOOKWORM.current('shop')}"
    BOOKWORM.run("systemctl", "stop", f"{units}.socket", f"{units}.service")
    try:
        dead = site.get("/")
    finally:
        BOOKWORM.run("systemctl", "start", f"{units}.socket", f"{units}.service")
    assert (dead.status, dead.headers[HSTS]) == (502, "max-age=300")
    BOOKWORM.quintet("maintenance", "shop", "on")
    try:
        closed = site.get("/")
    finally:
        BOOKWORM.quintet("maintenance", "shop", "off")
    assert (closed.status, closed.headers[HSTS]) == (503, "max-age=300")


# ---- what goes over it ------------------------------------------------------------------------------------------------


def test_people_chat_over_https_and_its_websockets(host: Host) -> None:
    site = chat(host)
    page = site.get("/rooms/lobby/")
    token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page.body)
    assert token
    with site.websocket(ROOM) as connection:
        receive(connection, "history")
        form = {
            "Content-Type": "application/x-www-form-urlencoded",
            "X-CSRFToken": token[1],
            "Accept": "application/json",
        }
        # Django compares the origin with the scheme that it was told: it must be https.
        sent = {**form, "Origin": f"https://{site.domain}"}
        answer = site.request("POST", "/rooms/lobby/messages", "text=over+TLS", sent)
        assert answer.status == 201, answer.body
        assert receive(connection, "message")["text"] == "over TLS"
        forged = {**form, "Origin": f"http://{site.domain}"}
        assert site.request("POST", "/rooms/lobby/messages", "text=x", forged).status == 403
    cookies = http_cookies(site)
    assert cookies
    assert all("secure" in cookie.lower() for cookie in cookies)


def http_cookies(site: SecureSite) -> list[str]:
    with site.connection() as connection:
        connection.request("GET", "/rooms/lobby/")
        response = connection.getresponse()
        response.read()
        return response.headers.get_all("Set-Cookie") or []


def test_a_switch_is_probed_as_people_come(host: Host) -> None:
    answer = host.quintet("probe", "chat")
    assert answer["ok"] is True
    through = [probe["message"] for probe in answer["probes"] if "through" in probe["message"]]
    assert through == [
        "GET /healthz through 127.0.0.1:443: as wanted",
        "WebSocket /ws/health/ through 127.0.0.1:443: as wanted",
    ]
    through = [probe["message"] for probe in host.quintet("probe", "bare")["probes"] if "through" in probe["message"]]
    assert through == ["GET / through 127.0.0.1:80: as wanted"]


# ---- the keys ---------------------------------------------------------------------------------------------------------


def test_keys_are_for_root_alone(host: Host) -> None:
    found = host.run("find", CERTIFICATES, "-type", "f", "-printf", "%m %u %p\n").split("\n")[:-1]
    keys = [line for line in found if line.endswith(("key.pem", ".key"))]
    assert len(keys) >= 3
    assert all(line.startswith("600 root ") for line in keys), keys
    for user in ("www-data", "chat", "plain_user" if "plain_user" in host.run("cat", "/etc/passwd") else "shop"):
        for line in keys:
            assert host.fails("cat", line.split()[2], user=user)
    # No copy is where others read: neither in the trees nor anywhere else below /etc, /var, /srv and /run.
    for key in ("first.key", "second.key"):
        secret = provided(key).read_text().splitlines()[1]
        where = host.run("sh", "-c", f"grep -rlsF -e '{secret}' /etc /var /srv /run /tmp /home /root || true").split()
        assert all(path.startswith(f"{CERTIFICATES}/shop/") for path in where)


# ---- what must change nothing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"shop_certificate": "narrow"},
            "django_apps[1].nginx.tls_certificate: doesn't cover 'www.shop.test' (it is for shop.test).",
        ),
        ({"shop_certificate": "expired"}, "django_apps[1].nginx.tls_certificate: ended at"),
        ({"shop_key": "second"}, "django_apps[1].nginx.tls_key: belongs to none of the certificates in"),
    ],
)
def test_what_must_not_be_served_is_refused_before_anything_is_touched(given: dict[str, str], said: str) -> None:
    played = play("site.yml", *(part for name, value in given.items() for part in ("-e", f"{name}={value}")))
    assert played.code != 0
    assert said in played.text
    assert "Nothing was changed on any host." in played.text
    assert played.changed == 0


def test_a_stranger_to_the_playbooks_is_told_the_same() -> None:
    played = play("molecule/tls/stranger.yml", "-e", "stranger_certificate=expired", "--limit", TRIXIE.name)
    assert played.code != 0
    assert "nginx_site_tls_certificate: ended at" in played.text
    assert "Nothing was changed." in played.text
    assert played.changed == 0


def test_check_mode_tells_of_new_certificates_without_having_them() -> None:
    played = play_well(
        "site.yml",
        "--check",
        "--tags",
        "nginx",
        "--limit",
        BOOKWORM.name,
        "-e",
        "shop_certificate=second",
        "-e",
        "chat_tls_days=1200",
    )
    assert "would have a certificate signed for chat.test, www.chat.test" in played.text
    assert played.count(BOOKWORM.name, "changed") == 3, played.changed_tasks
    assert chat(BOOKWORM).get("/healthz").status == 200


def test_testssl_grades_it_a_plus(grading: subprocess.Popen[str]) -> None:
    output, _ = grading.communicate(timeout=240)
    assert re.search(r"Overall Grade +A\+\n", output), output[-3000:]


# ---- changes --------------------------------------------------------------------------------------------------------


def test_new_certificates_are_served_and_no_connection_is_dropped() -> None:
    """A provided one, and one that is made anew for its age, in one run."""
    authorities = [host.run("cat", AUTHORITY) for host in HOSTS]
    before = {host.name: host.run("sh", "-c", f"ls -d {CERTIFICATES}/*/[0-9a-f]*").split() for host in HOSTS}
    sockets = [chat(host).websocket(ROOM) for host in HOSTS]
    with visited(*map(chat, HOSTS), *map(shop, HOSTS)) as visits:
        played = play_well(
            "site.yml", "--tags", "nginx", "--diff", "-vvv", "-e", "shop_certificate=second", "-e", "chat_tls_days=1200"
        )
        wait_for("the new ones to be seen", lambda: all(len(serials) == 2 for serials in visits.served.values()), 10)
    assert visits.failures == []
    assert visits.count > 100
    assert {len(serials) for serials in visits.served.values()} == {2}, "the old one, then the new one"
    for connection in sockets:
        connection.send(json.dumps({"type": "ping"}))
        assert receive(connection, "pong")
        connection.close()
    assert [host.run("cat", AUTHORITY) for host in HOSTS] == authorities, "who trusts it goes on doing so"
    for host in HOSTS:
        there = host.run("sh", "-c", f"ls -d {CERTIFICATES}/*/[0-9a-f]*").split()
        assert len(set(there) - set(before[host.name])) == 2
    for key in ("first.key", "second.key"):
        assert provided(key).read_text().splitlines()[1] not in played.output


def test_nothing_is_left_to_change() -> None:
    # The apps too, for what was done by --tags nginx alone; their databases know nothing of TLS.
    again = play_well(
        "site.yml", "--tags", "nginx,django_app", "--limit", BOOKWORM.name, "-e", "shop_certificate=second"
    )
    assert not again.changed, again.changed_tasks
    # What the trees no longer name is gone.
    for host in HOSTS:
        there = host.run("sh", "-c", f"ls -d {CERTIFICATES}/*/[0-9a-f]*").split()
        live = set(
            re.findall(
                rf"{CERTIFICATES}/\w+/[0-9a-f]{{16}}", host.run("sh", "-c", "cat /etc/nginx/quintet-trees/*/sites/*")
            )
        )
        assert set(there) == live


def test_tls_can_be_taken_away_and_nobody_listens_any_more() -> None:
    played = play_well(
        "site.yml", "--tags", "nginx", "--limit", TRIXIE.name, "-e", "chat_tls=off", "-e", "shop_tls=off"
    )
    assert played.count(TRIXIE.name, "changed") == 2, played.changed_tasks
    assert Site(TRIXIE, "chat.test").get("/healthz").status == 200
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((TRIXIE.address, 443), timeout=5)
    assert TRIXIE.run("ss", "-Hlntu", "sport = :443") == ""
