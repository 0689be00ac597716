"""What the demo says about its port, its host and a site that doesn't answer."""

import importlib
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
console: Any = importlib.import_module("console")
demo: Any = importlib.import_module("demo")


class Site(BaseHTTPRequestHandler):
    """A site whose first answer is an error, as while its servers start."""

    statuses: list[int]

    def do_GET(self) -> None:
        self.send_response(self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0])
        self.end_headers()
        self.wfile.write(b"starting")

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_waits_until_the_site_is_healthy(site: int, monkeypatch: pytest.MonkeyPatch) -> None:
    Site.statuses = [502, 200]
    # Never by a proxy: the demo is on this machine.
    monkeypatch.setenv("http_proxy", "http://192.0.2.1:3128")
    demo.wait_for_site(f"http://127.0.0.1:{site}")


def test_says_the_last_answer_of_a_site_that_stays_ill(site: int, monkeypatch: pytest.MonkeyPatch) -> None:
    Site.statuses = [502]
    monkeypatch.setattr(demo, "ANSWER_SECONDS", 0.2)
    with pytest.raises(console.Failure, match=r"Last: HTTP status 502: starting\nLook at the host"):
        demo.wait_for_site(f"http://127.0.0.1:{site}")


PORTS = {"DEMO_HTTP_PORT": 8080, "DEMO_HTTPS_PORT": 8443}


@pytest.mark.parametrize("name", PORTS)
@pytest.mark.parametrize("text", ["x", "0", "65536", "-1", "80 80"])
def test_an_impossible_port_is_refused(text: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, text)
    with pytest.raises(console.Failure, match=f"{name}: '{text}' is no port"):
        demo.read_port(name)


@pytest.mark.parametrize("name", PORTS)
def test_a_taken_port_is_named_with_another_choice(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "inspect", lambda *_: "")
    monkeypatch.setattr(demo, "is_free", lambda port: port != 8123)
    with pytest.raises(console.Failure, match=f"Port 8123 of 127.0.0.1 is taken.*\n.*make demo {name}=8124"):
        demo.check_host("trixie", {**PORTS, name: 8123})
    demo.check_host("trixie", PORTS)


def test_a_listener_takes_its_port() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert not demo.is_free(port)
    assert demo.is_free(port)


def test_a_running_demo_of_another_system_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "inspect", lambda *_: "true trixie 127.0.0.1:8080:80 127.0.0.1:8443:443")
    demo.check_host("trixie", PORTS)
    has = "DEMO_SUITE=trixie DEMO_HTTP_PORT=8080 DEMO_HTTPS_PORT=8443"
    with pytest.raises(console.Failure, match=f"{has}; asked for is DEMO_SUITE=bookworm"):
        demo.check_host("bookworm", PORTS)


def test_a_demo_of_before_there_was_https_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "inspect", lambda *_: "true trixie 127.0.0.1:8080:80")
    with pytest.raises(console.Failure, match=r"DEMO_HTTP_PORT=8080 DEMO_HTTPS_PORT=\?; asked"):
        demo.check_host("trixie", PORTS)
