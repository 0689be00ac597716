"""The sample app's ASGI application; with FAULT=websocket it refuses every WebSocket."""

from collections.abc import Awaitable, Callable
from typing import Any

from config.asgi import application as sample

from faults import FAULT

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


async def refuse(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Refuse a handshake."""
    await receive()
    await send({"type": "websocket.close"})


async def application(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Answer as the sample app does, or not."""
    refused = FAULT == "websocket" and scope["type"] == "websocket"
    await (refuse if refused else sample)(scope, receive, send)
