"""Two applications without a framework that answer with the digest of their secret TOKEN."""

import hashlib
import os
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any


def told() -> bytes:
    """Return the SHA-256 of the credential, else of the variable."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY", "")
    value = (Path(directory) / "TOKEN").read_text() if directory else os.environ["TOKEN"]
    return hashlib.sha256(value.encode()).hexdigest().encode()


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer any request with the digest."""
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "64")])
    return [told()]


async def asgi(
    scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> None:
    """Answer any request with the digest."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": told()})
