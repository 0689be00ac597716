"""Who is online, across server processes, and after one of them has died.

Each process writes one row a room that says whom it has there, valid for a short while, and reads the other
processes' rows. So joining and leaving cost no query each, however many do so at once, and the people of a process that was
killed go as soon as its rows expire.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from time import monotonic
from uuid import UUID, uuid4
from weakref import WeakKeyDictionary

from channels.db import database_sync_to_async
from django.conf import settings
from django.db.models import Q
from django.utils import timezone

from chat.models import Presence, Room
from chat.people import Person

# Seconds. What a process says about itself holds for LEASE; it says it again after RENEW, and looks for news of
# the others after POLL. GATHER is what joins and leaves are collected for, so that a thousand make one query.
# Hosts' clocks may differ by a few seconds; the distance from RENEW to LEASE is the room for that.
LEASE = 30.0
RENEW = 10.0
POLL = 2.0
GATHER = 0.2
# WebSockets that join their groups again at once.
REJOIN_AT_ONCE = 50

logger = logging.getLogger(__name__)

People = Iterable[Person]


@dataclass
class Connection:
    """One WebSocket in a room. `tell` sends it the names, `renew` renews its place in the room's group.

    `rejoin` takes a new place there and sends what was said meanwhile, and `close` ends it so that the client comes back.
    """

    room_id: int
    person: Person
    tell: Callable[[list[str]], Awaitable[None]]
    renew: Callable[[], Awaitable[None]]
    rejoin: Callable[[], Awaitable[None]]
    close: Callable[[], Awaitable[None]]
    told: list[str] | None = None
    renewed_at: float = field(default_factory=monotonic)


class Register:
    """The WebSockets of this process, and the task that compares notes with the other processes."""

    def __init__(self) -> None:
        self.process = uuid4()
        self.connections: dict[str, Connection] = {}
        self._changed = asyncio.Event()
        self._written_at: float | None = None
        self._task: asyncio.Task[None] | None = None
        self._rejoining: asyncio.Task[None] | None = None

    def join(self, channel: str, connection: Connection) -> None:
        """Add a WebSocket; it and the others in its room are told soon."""
        self.connections[channel] = connection
        self._change()

    def leave(self, channel: str) -> None:
        """Take a WebSocket out, if it is in."""
        if self.connections.pop(channel, None):
            self._change()

    def rejoin(self) -> None:
        """Have all WebSockets join their groups again: the channel layer has failed, and may have lost them.

        One that can't is closed, as its people would hear nothing and not know it.
        """
        if self._rejoining is None or self._rejoining.done():
            self._rejoining = asyncio.create_task(self._rejoin())

    async def _rejoin(self) -> None:
        left = list(self.connections)
        while left:
            batch, left = self._open(left[:REJOIN_AT_ONCE]), left[REJOIN_AT_ONCE:]
            outcomes = await asyncio.gather(*(connection.rejoin() for connection in batch), return_exceptions=True)
            lost = [one for one, outcome in zip(batch, outcomes, strict=True) if isinstance(outcome, Exception)]
            if lost:
                # The others would wait for it in vain, too.
                lost, left = [*lost, *self._open(left)], []
            await asyncio.gather(*(connection.close() for connection in lost), return_exceptions=True)

    def _open(self, channels: Iterable[str]) -> list[Connection]:
        return [self.connections[channel] for channel in channels if channel in self.connections]

    def _change(self) -> None:
        self._changed.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        try:
            while self.connections or self._changed.is_set():
                await asyncio.sleep(GATHER)
                await self._exchange()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), POLL if self.connections else 0)
        finally:
            self._task = None

    async def _exchange(self) -> None:
        changed = self._changed.is_set()
        self._changed.clear()
        write = changed or self._written_at is None or monotonic() - self._written_at >= RENEW
        here: dict[int, list[Person]] = {}
        for connection in self.connections.values():
            here.setdefault(connection.room_id, []).append(connection.person)
        try:
            if write:
                started = monotonic()
                await database_sync_to_async(report)(self.process, here)
                self._written_at = started
            online = await database_sync_to_async(online_in)(here)
        except Exception as error:
            # The sockets work without it. Try again at the next turn.
            logger.warning("Can't tell who is online: %s", type(error).__name__)
            self._written_at = None
            return
        for connection in list(self.connections.values()):
            await self._serve(connection, online.get(connection.room_id))

    async def _serve(self, connection: Connection, names: list[str] | None) -> None:
        try:
            if names is not None and names != connection.told:
                connection.told = names
                await connection.tell(names)
            if monotonic() - connection.renewed_at >= settings.CHANNEL_GROUP_EXPIRY_SECONDS / 4:
                connection.renewed_at = monotonic()
                await connection.renew()
        except Exception as error:
            # It may just have closed; that must not keep the others from hearing.
            logger.debug("Can't reach a WebSocket: %s", type(error).__name__)


# One a process: a process has one event loop, but for tests, where each has its own.
_registers: WeakKeyDictionary[asyncio.AbstractEventLoop, Register] = WeakKeyDictionary()


def register() -> Register:
    """Return this process's register."""
    return _registers.setdefault(asyncio.get_running_loop(), Register())


def report(process: UUID, here: Mapping[int, People]) -> None:
    """Write whom this process has in which room, and take out what has expired, of whatever process."""
    now = timezone.now()
    Presence.objects.filter(Q(expires_at__lte=now) | Q(process=process) & ~Q(room_id__in=list(here))).delete()
    # A room may have been deleted while people are in it.
    existing = set(Room.objects.filter(pk__in=list(here)).values_list("pk", flat=True))
    Presence.objects.bulk_create(
        [
            Presence(
                process=process,
                room_id=room_id,
                people=[[person.client, person.name] for person in people],
                expires_at=now + timedelta(seconds=LEASE),
            )
            for room_id, people in here.items()
            if room_id in existing
        ],
        update_conflicts=True,
        unique_fields=["process", "room"],
        update_fields=["people", "expires_at"],
    )


def online_in(room_ids: Iterable[int]) -> dict[int, list[str]]:
    """Return the names of who is in each of the rooms now, by any process's word, in alphabetical order.

    A browser with two tabs is one person. A program that gave no client id counts once a connection.
    """
    rows = Presence.objects.filter(room_id__in=list(room_ids), expires_at__gt=timezone.now())
    people: dict[int, list[tuple[str, str]]] = {room_id: [] for room_id in room_ids}
    for room_id, entries in rows.values_list("room_id", "people"):
        people[room_id].extend((client, name) for client, name in entries)
    online = {}
    for room_id, entries in people.items():
        known = {entry for entry in entries if entry[0]}
        nameless = [entry for entry in entries if not entry[0]]
        online[room_id] = sorted((name for _, name in [*known, *nameless]), key=lambda name: (name.casefold(), name))
    return online
