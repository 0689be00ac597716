"""HTTP/1.1 for a load that counts: one connection, one request at a time, and never a second try.

When is a closed connection a lost request? A server may close a kept connection while nothing is asked on it. So just
before a request is sent, the kernel is asked whether the server's end has come already (`Connection.is_over`): then
nothing of the request was sent, and it belongs on another connection. From the first byte that is sent, whatever is not a whole
answer is a lost request, however the connection ended and even if the server never read it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from dataclasses import dataclass

MOST_BYTES = 10_000_000


class LostError(Exception):
    """A request without a whole answer; the text says how it ended."""


@dataclass(frozen=True)
class Response:
    """A whole answer: header names in lower case, cookies as name and value."""

    status: int
    headers: Mapping[str, str]
    cookies: Mapping[str, str]
    body: bytes


class Connection:
    """A TCP connection to a server; `keep` says whether the last answer leaves it open."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._loop = asyncio.get_running_loop()
        self._rest = b""
        self.keep = True

    @classmethod
    async def open(cls, address: str, port: int) -> Connection:
        """Connect; raises `LostError`, since a request waits for this connection."""
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (address, port))
        except OSError as error:
            sock.close()
            raise LostError(f"no connection: {error}") from error
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    def is_over(self) -> bool:
        """Say whether the server has ended the connection. Bytes that nobody asked for are not an end."""
        try:
            return self._socket.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    async def request(self, method: str, target: str, headers: Mapping[str, str], body: bytes = b"") -> Response:
        """Send one request and return its whole answer; raises `LostError`."""
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        try:
            await self._loop.sock_sendall(self._socket, "\r\n".join([*lines, "", ""]).encode() + body)
            return await self._answer()
        except (OSError, ValueError) as error:
            raise LostError(f"{type(error).__name__}: {error}") from error

    async def _answer(self) -> Response:
        head = (await self._until(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        version, status = head[0].split(" ", 2)[:2]
        pairs = [(name.strip().lower(), value.strip()) for name, _, value in (line.partition(":") for line in head[1:])]
        headers = dict(pairs)
        cookies = dict(value.partition(";")[0].split("=", 1) for name, value in pairs if name == "set-cookie")
        self.keep = version == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = await self._chunks()
        elif "content-length" in headers:
            body = await self._exactly(int(headers["content-length"]))
        elif int(status) in (204, 304):
            body = b""
        else:
            # Only the connection's end would tell the body's, and that a lost connection has, too.
            raise LostError("an answer whose end can't be known")
        if self._rest:
            raise LostError("more bytes than the answer has")
        return Response(int(status), headers, cookies, body)

    async def _chunks(self) -> bytes:
        parts = []
        while size := int((await self._until(b"\r\n")).partition(b";")[0], 16):
            parts.append(await self._exactly(size))
            await self._until(b"\r\n")
        while await self._until(b"\r\n"):
            pass
        return b"".join(parts)

    async def _until(self, end: bytes) -> bytes:
        while end not in self._rest:
            await self._more()
        found, _, self._rest = self._rest.partition(end)
        return found

    async def _exactly(self, size: int) -> bytes:
        while len(self._rest) < size:
            await self._more()
        found, self._rest = self._rest[:size], self._rest[size:]
        return found

    async def _more(self) -> None:
        read = await self._loop.sock_recv(self._socket, 65536)
        if not read:
            raise LostError("the connection ended before the answer did")
        self._rest += read
        if len(self._rest) > MOST_BYTES:
            raise LostError(f"more than {MOST_BYTES} bytes")
