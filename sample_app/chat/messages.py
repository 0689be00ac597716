"""Storing messages once, reading them back, and telling the room."""

import asyncio
import logging
from typing import Any

from channels.layers import get_channel_layer
from django.db import IntegrityError

from chat.models import Message
from chat.people import Person
from chat.validation import BadInputError

HISTORY_MESSAGES = 50
# Nobody waits longer for the channel layer to join a room, or to tell one.
CHANNEL_LAYER_SECONDS = 3.0

logger = logging.getLogger(__name__)


def group_name(room_id: int) -> str:
    """Return the channel layer's group of everybody who is connected to a room."""
    return f"room.{room_id}"


def as_json(message: Message) -> dict[str, Any]:
    """Return a message as the protocol has it."""
    return {
        "type": "message",
        "id": message.pk,
        "author": message.author,
        "text": message.text,
        "sent_at": message.sent_at.isoformat(),
    }


def history(room_id: int) -> list[Message]:
    """Return the room's last messages, oldest first."""
    return list(Message.objects.filter(room_id=room_id).order_by("-id")[:HISTORY_MESSAGES])[::-1]


def store(room_id: int, person: Person, ref: str, text: str) -> tuple[Message, bool]:
    """Store a message unless this client's `ref` is there already; return it, and whether it is new.

    The database's constraint decides, so it holds for any number of processes at once. Raises BadInputError when the
    `ref` stands for another text, and when the room is gone.
    """
    try:
        message, created = Message.objects.get_or_create(
            room_id=room_id, client=person.client, ref=ref, defaults={"author": person.name, "text": text}
        )
    except IntegrityError as error:
        raise BadInputError("no_room", "This room no longer exists. Choose another one.", ref) from error
    if message.text != text:
        raise BadInputError("ref_taken", "This 'ref' already names another message. Use a new one for each.", ref)
    return message, created


async def broadcast(message: Message) -> None:
    """Send a stored message to everybody in its room, on every server process.

    A channel layer that is down or late is logged and no more: the message is stored, and comes with the next history.
    """
    event = {"type": "chat.message", "message": as_json(message)}
    try:
        async with asyncio.timeout(CHANNEL_LAYER_SECONDS):
            await get_channel_layer().group_send(group_name(message.room_id), event)
    except Exception:
        logger.exception("Message %s is stored, but the channel layer did not take it.", message.pk)
