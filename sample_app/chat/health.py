"""Whether this process can do its work, for who probes it."""

import asyncio
import logging
import os
from typing import Any

from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.conf import settings
from django.db import connection
from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from chat.messages import CHANNEL_LAYER_SECONDS

logger = logging.getLogger(__name__)


@never_cache
@require_safe
def health(request: HttpRequest) -> JsonResponse:
    """Answer 200 when all that the app needs is there, else 503; never with more than the kind of an error."""
    parts = {"database": database(), "channel_layer": channel_layer()}
    well = not any(state.startswith("error") for state in parts.values())
    content: dict[str, Any] = {
        "status": "ok" if well else "error",
        **parts,
        "generation": settings.QUINTET_GENERATION,
        "process": os.getpid(),
    }
    return JsonResponse(content, status=200 if well else 503)


def database() -> str:
    """Return "ok", or the kind of error."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            cursor.fetchone()
    except Exception as error:
        return failure("database", error)
    return "ok"


def channel_layer() -> str:
    """Return "ok", the kind of error, or "none" when messages stay inside this process."""
    if not settings.CHANNEL_LAYER_URL:
        return "none"
    try:
        async_to_sync(_reach_channel_layer)()
    except Exception as error:
        return failure("channel layer", error)
    return "ok"


async def _reach_channel_layer() -> None:
    # A group that nobody is in: a round trip that leaves nothing behind and needs no right of its own.
    await asyncio.wait_for(get_channel_layer().group_send("health", {"type": "health"}), CHANNEL_LAYER_SECONDS)


def failure(part: str, error: Exception) -> str:
    """Log the error, and return what of it anybody may see."""
    logger.error("Health: the %s is not there: %s", part, error)
    return f"error: {type(error).__name__}"
