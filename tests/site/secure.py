"""Sites with TLS, as browsers see them: the chain is checked, and the name is asked for."""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hosts import Answer, Host, Site
from websockets import Origin
from websockets.sync.client import ClientConnection, connect

AUTHORITY = "/etc/nginx/quintet-tls/authority.pem"


def provided(name: str) -> Path:
    """Return the path of what authority.py has made."""
    return Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "provided" / name


@dataclass
class SecureSite(Site):
    """One domain over HTTPS; `authority` is the certificate in PEM of who must have signed the site's."""

    authority: str = ""

    @cached_property
    def context(self) -> ssl.SSLContext:
        """What a careful client believes."""
        return ssl.create_default_context(cadata=self.authority)

    def connected(self, context: ssl.SSLContext | None = None, name: str | None = "") -> ssl.SSLSocket:
        """Return a connection with TLS; another name than the site's, or None, asks for that one. Raises ssl.SSLError."""
        plain = socket.create_connection((self.host.address, 443), timeout=30)
        try:
            return (context or self.context).wrap_socket(plain, server_hostname=self.domain if name == "" else name)
        except BaseException:
            plain.close()
            raise

    @contextmanager
    def connection(self) -> Iterator[http.client.HTTPConnection]:
        """Open a connection for several requests."""
        opened = http.client.HTTPConnection(self.domain, timeout=30)
        opened.sock = self.connected()
        try:
            yield opened
        finally:
            opened.close()

    def request(self, method: str, path: str, body: str | None = None, headers: dict[str, str] | None = None) -> Answer:
        """Send one request over HTTPS and keep its cookies."""
        sent = dict(headers or {})
        if self.cookies:
            sent["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        with self.connection() as connection:
            connection.request(method, path, body=body, headers=sent)
            response = connection.getresponse()
            text = response.read().decode(errors="replace")
            for value in response.headers.get_all("Set-Cookie") or []:
                name, _, rest = value.partition("=")
                self.cookies[name] = rest.split(";")[0]
        return Answer(response.status, {key.lower(): value for key, value in response.headers.items()}, text)

    def websocket(self, path: str, origin: str | None = "", **options: Any) -> ClientConnection:
        """Open a WebSocket over TLS; the site's own origin unless another, or None, is given."""
        return connect(
            f"wss://{self.domain}{path}",
            sock=socket.create_connection((self.host.address, 443), timeout=30),
            ssl=self.context,
            server_hostname=self.domain,
            origin=Origin(f"https://{self.domain}" if origin == "" else origin) if origin is not None else None,
            compression=None,
            open_timeout=30,
            legacy=True,  # returns the connection itself, for tests that hold several
            **options,
        )

    @property
    def serial(self) -> int:
        """The serial number of the certificate that is served."""
        with self.connected() as connection:
            found = connection.getpeercert()
        assert found
        return int(str(found["serialNumber"]), 16)


def chat(host: Host) -> SecureSite:
    """Return the site whose certificate the host's own authority has signed."""
    return SecureSite(host, "chat.test", authority=host.run("cat", AUTHORITY))


def shop(host: Host) -> SecureSite:
    """Return the site whose certificate was provided."""
    return SecureSite(host, "shop.test", authority=provided("authority.pem").read_text())


@dataclass
class Visits:
    """Requests on new connections, one after the other, while something changes."""

    path: str
    failures: list[str] = field(default_factory=list)
    served: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    count: int = 0

    def visit(self, site: SecureSite) -> None:
        """Ask once, and note whose certificate that was."""
        try:
            with site.connected() as connection:
                serial = int(str((connection.getpeercert() or {})["serialNumber"]), 16)
                asked = f"GET {self.path} HTTP/1.1\r\nHost: {site.domain}\r\nConnection: close\r\n\r\n"
                connection.sendall(asked.encode())
                answer = http.client.HTTPResponse(connection)
                answer.begin()
                answer.read()
            assert answer.status == 200, answer.status
        except (OSError, http.client.HTTPException, AssertionError) as error:
            self.failures.append(f"{site.host.name} {site.domain}: {error!r}")
        else:
            # As they were first seen: while Nginx reloads, an old worker may take one more connection after a new one's first.
            serials = self.served.setdefault((site.host.name, site.domain), [])
            if serial not in serials:
                serials.append(serial)
        self.count += 1


@contextmanager
def visited(*sites: SecureSite, path: str = "/") -> Iterator[Visits]:
    """Keep visiting the sites, about ten times a second each."""
    visits, stop = Visits(path), threading.Event()

    def go(site: SecureSite) -> None:
        while not stop.wait(0.1):
            visits.visit(site)

    threads = [threading.Thread(target=go, args=(site,)) for site in sites]
    for thread in threads:
        thread.start()
    try:
        yield visits
    finally:
        stop.set()
        for thread in threads:
            thread.join()
