"""Sites with TLS, as browsers see them: the chain is checked, and the name is asked for."""

from __future__ import annotations

import http.client
import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
