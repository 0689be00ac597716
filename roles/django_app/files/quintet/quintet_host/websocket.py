"""As much of a WebSocket client (RFC 6455) as a probe needs: handshake, text messages, pings, close."""

import base64
import hashlib
import os
import socket
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus

ACCEPT_SUFFIX = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3
LONGEST_HEAD = 64 * 1024
LONGEST_MESSAGE = 1024 * 1024
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA


class WebSocketError(Exception):
    """The server broke the protocol; says how."""


class HandshakeRefusedError(WebSocketError):
    """The server answered the handshake with another status than 101."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"{status} {body}".strip())
        self.status = status
        self.body = body


class ClosedError(WebSocketError):
    """The server closed; `code` is 1005 for a close frame without one and 1006 for no close frame at all."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(f"close {code} {reason}".strip())
        self.code = code
        self.reason = reason


class WebSocket:
    """One connection over a connected stream socket.

    Everything has to be done by `deadline`, a time.monotonic() value; TimeoutError is raised after it.
    """

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._socket = connection
        self._deadline = deadline
        self._received = b""

    def open(self, path: str, headers: Mapping[str, str], subprotocol: str | None = None) -> None:
        """Do the handshake; raises HandshakeRefusedError or WebSocketError."""
        key = base64.b64encode(os.urandom(16))
        sent = {**headers, "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
        sent["Sec-WebSocket-Key"] = key.decode()
        if subprotocol is not None:
            sent["Sec-WebSocket-Protocol"] = subprotocol
        lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items()), "", ""]
        self._send("\r\n".join(lines).encode("latin-1", "replace"))
        status, received = self._read_head()
        if status != HTTPStatus.SWITCHING_PROTOCOLS:
            raise HandshakeRefusedError(status, self._read_body(received.get("content-length", "")))
        accept = base64.b64encode(hashlib.sha1(key + ACCEPT_SUFFIX, usedforsecurity=False).digest()).decode()
        if received.get("sec-websocket-accept") != accept:
            raise WebSocketError("101 with a wrong Sec-WebSocket-Accept")
        chosen = received.get("sec-websocket-protocol")
        if chosen != subprotocol:
            raise WebSocketError(f"101 with the subprotocol {chosen} instead of {subprotocol}")

    def send_text(self, text: str) -> None:
        """Send one text message."""
        self._send_frame(TEXT, text.encode())

    def receive(self) -> str:
        """Return the next message as text; pings are answered on the way. Raises ClosedError when the server closes."""
        message, kind = b"", CONTINUATION
        while True:
            final, opcode, payload = self._read_frame()
            if opcode == PING:
                self._send_frame(PONG, payload)
            elif opcode == CLOSE:
                self._answer_close(payload)
            elif opcode in (TEXT, BINARY, CONTINUATION):
                if (opcode == CONTINUATION) != (kind != CONTINUATION):
                    raise WebSocketError("a fragment out of order")
                kind = kind or opcode
                message += payload
                if len(message) > LONGEST_MESSAGE:
                    raise WebSocketError(f"a message above {LONGEST_MESSAGE} bytes")
                if final:
                    return message.decode(errors="replace")
            elif opcode != PONG:
                raise WebSocketError(f"a frame of the unknown kind {opcode}")

    def close(self) -> None:
        """Say goodbye and wait up to a second for the answer, so that the server does not see a broken connection."""
        self._deadline = min(self._deadline, time.monotonic() + 1)
        try:
            self._send_frame(CLOSE, struct.pack("!H", 1000))
            while True:
                self.receive()
        except (OSError, WebSocketError):
            pass

    def _answer_close(self, payload: bytes) -> None:
        with suppress(OSError):  # a server that is gone at once has said why all the same
            self._send_frame(CLOSE, payload[:2])
        if len(payload) < 2:
            raise ClosedError(1005)
        raise ClosedError(struct.unpack("!H", payload[:2])[0], payload[2:].decode(errors="replace"))

    def _send(self, data: bytes) -> None:
        self._limit_wait()
        self._socket.sendall(data)

    def _send_frame(self, opcode: int, payload: bytes) -> None:
        if len(payload) < 126:
            head = struct.pack("!BB", 0x80 | opcode, 0x80 | len(payload))
        elif len(payload) < 65536:
            head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, len(payload))
        else:
            head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, len(payload))
        mask = os.urandom(4)
        self._send(head + mask + bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload)))

    def _read_frame(self) -> tuple[bool, int, bytes]:
        first, second = self._read(2)
        if first & 0x70:
            raise WebSocketError("a frame with reserved bits, though no extension was agreed")
        if second & 0x80:
            raise WebSocketError("a masked frame from the server")
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack("!H", self._read(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", self._read(8))
        if length > LONGEST_MESSAGE:
            raise WebSocketError(f"a frame of {length} bytes, above {LONGEST_MESSAGE}")
        return bool(first & 0x80), first & 0x0F, self._read(length)

    def _read(self, length: int) -> bytes:
        while len(self._received) < length:
            if not self._receive_more():
                raise ClosedError(1006, "connection ended without a close frame")
        data, self._received = self._received[:length], self._received[length:]
        return data

    def _read_head(self) -> tuple[int, dict[str, str]]:
        while b"\r\n\r\n" not in self._received:
            if len(self._received) > LONGEST_HEAD:
                raise WebSocketError(f"response headers above {LONGEST_HEAD} bytes")
            if not self._receive_more():
                raise WebSocketError("the connection was closed before the handshake was answered")
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        version, _, rest = status_line.partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
            raise WebSocketError(f"{status_line[:80]!r}, which is no HTTP response")
        pairs = (line.partition(":") for line in lines)
        return int(rest[:3]), {name.strip().lower(): value.strip() for name, _, value in pairs}

    def _read_body(self, content_length: str) -> str:
        """Return what came with a refusal, as far as it comes in time: it only serves the message."""
        wanted = min(int(content_length) if content_length.isdigit() else 0, LONGEST_HEAD)
        try:
            while len(self._received) < wanted and self._receive_more():
                pass
        except OSError:
            pass
        return self._received[:wanted].decode(errors="replace")

    def _receive_more(self) -> bool:
        self._limit_wait()
        data = self._socket.recv(64 * 1024)
        self._received += data
        return bool(data)

    def _limit_wait(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)
