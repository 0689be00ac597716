"""A WebSocket client for the tests."""

from typing import Any
from urllib.parse import urlencode

from channels.testing import WebsocketCommunicator

from config.asgi import application

ORIGIN = b"http://localhost"


class Client(WebsocketCommunicator):
    """A connection to the whole ASGI application, with all of its middleware."""

    def __init__(self, path: str, *, origin: bytes | None = ORIGIN, cookie: str = "", **query: str) -> None:
        headers = [(b"host", b"localhost")]
        if origin is not None:
            headers.append((b"origin", origin))
        if cookie:
            headers.append((b"cookie", cookie.encode()))
        super().__init__(application, f"{path}?{urlencode(query)}" if query else path, headers)

    async def expect(self, kind: str, seconds: float = 5) -> dict[str, Any]:
        """Return the next object of a type; presence may come between any two others."""
        while True:
            content = await self.receive_json_from(seconds)
            if content["type"] == kind:
                return content
            assert content["type"] == "presence", content


async def enter(slug: str = "lobby", **options: Any) -> tuple[Client, list[dict[str, Any]]]:
    """Connect to a room; return the client and the history that it got."""
    client = Client(f"/ws/rooms/{slug}/", **options)
    connected, _ = await client.connect()
    assert connected
    return client, (await client.expect("history"))["messages"]
