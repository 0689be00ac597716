"""An ASGI application without a framework: it sends back whatever a WebSocket says."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

Event = dict[str, Any]


async def application(
    scope: dict[str, Any], receive: Callable[[], Awaitable[Event]], send: Callable[[Event], Awaitable[None]]
) -> None:
    """Echo a WebSocket until it is closed. Plain HTTP, and a WebSocket at /request, are told what reached this."""
    request = json.dumps(
        {
            "scheme": scope.get("scheme", "ws"),  # Daphne leaves out that of a WebSocket
            "script_name": scope["root_path"],
            "client": scope["client"][0],
            "headers": sorted([name.decode(), value.decode()] for name, value in scope["headers"]),
        }
    )
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 426, "headers": [(b"upgrade", b"websocket")]})
        await send({"type": "http.response.body", "body": request.encode()})
        return
    await receive()
    await send({"type": "websocket.accept"})
    if scope["path"] == "/request":
        await send({"type": "websocket.send", "text": request})
    while (event := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": event.get("text"), "bytes": event.get("bytes")})
