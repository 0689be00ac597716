"""The WebSockets: one a room, and one that only shows that WebSockets work. README.md has the protocol."""

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any
from urllib.parse import parse_qsl

from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer
from django.conf import settings
from django.db import Error as DatabaseError
from redis.exceptions import RedisError

from chat import messages, presence
from chat.models import Message, Room
from chat.people import identify
from chat.validation import BadInputError, clean_ref, clean_text

# Characters of one frame: the longest text with every character written as a pair of escapes, and the rest.
FRAME_CHARACTERS = 32_000
# Messages that one connection may send at once, and a second after that.
BURST = 60
RATE = 20.0
# Of the range that is the application's own: the room does not exist, don't come back.
CLOSE_NO_ROOM = 4404
# Come back: here is no channel layer, which another host may still reach. (Autobahn lets no application say 1013, try again later.)
CLOSE_UNAVAILABLE = 4503
# How a channel layer fails that is away, or late (TimeoutError is an OSError).
CHANNEL_LAYER_ERRORS = (RedisError, OSError)

logger = logging.getLogger(__name__)


class JsonConsumer(AsyncWebsocketConsumer):
    """A WebSocket of JSON objects with a `type`, on which bad input is answered and never closes it."""

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """Answer one frame."""
        try:
            await self.handle(parse(text_data))
        except BadInputError as error:
            await self.send_json(error.as_json())

    async def handle(self, content: dict[str, Any]) -> None:
        """Answer one object, or raise BadInputError."""
        if content["type"] != "ping":
            raise BadInputError("unknown_type", f"There is no type {content['type'][:40]!r} here.")
        await self.send_json({"type": "pong", "generation": settings.QUINTET_GENERATION, "process": os.getpid()})

    async def send_json(self, content: dict[str, Any]) -> None:
        """Send one object."""
        await self.send(json.dumps(content))


class HealthConsumer(JsonConsumer):
    """Answers a ping with a pong, and needs nothing else to be well for it."""


class RoomConsumer(JsonConsumer):
    """One person's connection to one room."""

    room: Room | None = None

    async def __call__(
        self, scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        """Serve the connection to its end. One for which the channel layer fails is told to come back."""
        try:
            await super().__call__(scope, receive, send)
        except CHANNEL_LAYER_ERRORS as error:
            logger.warning("A WebSocket ends, as the channel layer failed: %s", type(error).__name__)
            # Of each process one WebSocket at a time waits for messages, and learns it. The groups of all may be lost.
            presence.register().rejoin()
            await self.close(CLOSE_UNAVAILABLE)
        finally:
            presence.register().leave(self.channel_name)

    async def connect(self) -> None:
        """Join the room and send its history, so that no message falls between the two."""
        slug = self.scope["url_route"]["kwargs"]["slug"]
        query = dict(parse_qsl(self.scope.get("query_string", b"").decode("latin-1")))
        self.person = identify(self.scope.get("cookies", {}), query)
        self.allowance = Allowance(BURST, RATE)
        self.in_history: set[int] = set()

        room = await database_sync_to_async(Room.objects.filter(slug=slug).first)()
        await self.accept()
        if room is None:
            await self.send_json(BadInputError("no_room", "There is no such room. Choose another one.").as_json())
            await self.close(CLOSE_NO_ROOM)
            return

        self.room = room
        await self.join()
        presence.register().join(
            self.channel_name,
            presence.Connection(
                room.pk, self.person, self.send_presence, self.join_group, self.join, self.close_for_another
            ),
        )

    async def disconnect(self, code: int) -> None:
        """Leave the room."""
        if self.room is None:
            return
        presence.register().leave(self.channel_name)
        try:
            async with asyncio.timeout(messages.CHANNEL_LAYER_SECONDS):
                await self.channel_layer.group_discard(messages.group_name(self.room.pk), self.channel_name)
        except CHANNEL_LAYER_ERRORS as error:
            logger.debug("A WebSocket could not leave its group, which forgets it later: %s", type(error).__name__)

    async def join(self) -> None:
        """Join the room's group and send its history: what came while this connection was in no group is in it."""
        if self.room is None:
            return
        await self.join_group()
        past = await database_sync_to_async(messages.history)(self.room.pk)
        self.in_history = {message.pk for message in past}
        await self.send_json({"type": "history", "messages": [messages.as_json(message) for message in past]})

    async def join_group(self) -> None:
        """Join the room's group in the channel layer, or stay in it for longer."""
        if self.room is not None:
            async with asyncio.timeout(messages.CHANNEL_LAYER_SECONDS):
                await self.channel_layer.group_add(messages.group_name(self.room.pk), self.channel_name)

    async def close_for_another(self) -> None:
        """Tell the client to come back, to another host perhaps."""
        await self.close(CLOSE_UNAVAILABLE)

    async def handle(self, content: dict[str, Any]) -> None:
        """Store a message, tell the room and acknowledge it; leave other types to the base."""
        if content["type"] != "message":
            await super().handle(content)
            return
        if self.room is None:
            raise BadInputError("no_room", "There is no such room. Choose another one.")
        ref = clean_ref(content.get("ref"))
        try:
            text = clean_text(content.get("text"))
        except BadInputError as error:
            error.ref = ref
            raise
        if not self.allowance.take():
            raise BadInputError("too_fast", "That was too much at once. Send it again in a few seconds.", ref)
        message = await self.store(self.room, ref, text)
        await self.send_json({"type": "ack", "ref": ref, "id": message.pk})

    async def store(self, room: Room, ref: str, text: str) -> Message:
        """Store a message and, when it is new, tell the room. Raises BadInputError when the database is away."""
        try:
            message: Message
            message, created = await database_sync_to_async(messages.store)(room.pk, self.person, ref, text)
        except DatabaseError as error:
            logger.exception("A message could not be stored.")
            raise BadInputError(
                "unavailable", "The message could not be stored. Send it again in a few seconds.", ref
            ) from error
        if created:
            await messages.broadcast(message)
        return message

    async def chat_message(self, event: dict[str, Any]) -> None:
        """Pass on what somebody wrote, unless it was in the history already."""
        if event["message"]["id"] not in self.in_history:
            await self.send_json(event["message"])

    async def send_presence(self, names: list[str]) -> None:
        """Say who is online."""
        await self.send_json({"type": "presence", "online": names})


class NotFoundConsumer(AsyncWebsocketConsumer):
    """Refuses the handshake on a path where there is nothing."""

    async def connect(self) -> None:
        """Refuse with 403, which is all that the protocol has."""
        await self.close()


class Allowance:
    """A token bucket: `burst` at once, then `rate` a second."""

    def __init__(self, burst: int, rate: float) -> None:
        self.burst = burst
        self.rate = rate
        self.left = float(burst)
        self.counted_at = monotonic()

    def take(self) -> bool:
        """Take one, or return False when there is none."""
        now = monotonic()
        self.left = min(self.burst, self.left + (now - self.counted_at) * self.rate)
        self.counted_at = now
        if self.left < 1:
            return False
        self.left -= 1
        return True


def parse(text_data: str | None) -> dict[str, Any]:
    """Return the object in a frame, or raise BadInputError."""
    if text_data is None:
        raise BadInputError("not_text", "Binary frames mean nothing here. Send JSON as text.")
    if len(text_data) > FRAME_CHARACTERS:
        raise BadInputError("too_long", f"The frame is too long; {FRAME_CHARACTERS} characters are allowed.")
    try:
        content = json.loads(text_data)
    except (ValueError, RecursionError) as error:
        raise BadInputError("bad_json", "The frame is not JSON. Send an object with a 'type'.") from error
    if not isinstance(content, dict) or not isinstance(content.get("type"), str):
        raise BadInputError("type_missing", "The frame has no 'type'. Send an object with one.")
    return content
