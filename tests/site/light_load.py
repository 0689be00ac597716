"""A light load on a site that is changed or hurt meanwhile: what it has lost so far, and whether all that it said is kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hosts import WAIT_SECONDS, Host, Site, wait_for
from load import Background, Load, Rates, Target
from load_report import Row, compare

HTTP = ("kept", "fresh", "slow", "post", "static", "page")


@dataclass(frozen=True)
class Toll:
    """What a load has lost so far: requests, handshakes, and sockets that ended without being told to come back."""

    requests: int
    handshakes: int
    sockets: int

    @property
    def cells(self) -> tuple[str, str, str]:
        """What a table shows."""
        return str(self.requests), str(self.handshakes), str(self.sockets)

    def __sub__(self, before: Toll) -> Toll:
        return Toll(self.requests - before.requests, self.handshakes - before.handshakes, self.sockets - before.sockets)


def toll(load: Load) -> Toll:
    """Return what a load has lost so far."""
    ended = dict(load.ledger.ended)
    return Toll(
        sum(count for (kind, outcome), count in ended.items() if kind in HTTP and outcome != "ok"),
        sum(count for (kind, outcome), count in ended.items() if kind == "handshake" and outcome != "ok"),
        sum(count for (kind, outcome), count in ended.items() if kind == "socket" and outcome not in ("1000", "1012")),
    )


def loses_nothing(load: Load) -> bool:
    """Watch the load for a while; returns whether it has lost nothing in it."""
    before, answered = toll(load), load.ledger.total("ok")
    wait_for("more answers", lambda: load.ledger.total("ok") > answered + 20)
    return toll(load) == before


def becomes_whole(load: Load, fault: str, is_whole: Callable[[Load], bool]) -> float:
    """Wait until the site is whole and stays so for a while; returns the seconds until that while began.

    To look whole is not enough: what holds a dead connection, to Redis say, and has not used it yet may still end sockets.
    """
    began = time.monotonic()
    while True:
        wait_for(f"the site after {fault}", lambda: is_whole(load))
        seconds = time.monotonic() - began
        if loses_nothing(load):
            return seconds
        assert seconds < WAIT_SECONDS, load.ledger.problems[-5:]


@contextmanager
def light_load(site: Site, rates: Rates, database: Host | None = None) -> Iterator[Load]:
    """Put a load on a site of the chat meanwhile; after it everything acknowledged must be stored, once.

    `database` is the database's host, where that is another one.
    """
    database = database or site.host
    rooms = ", ".join(f"('load-{number}', 'Load {number}', now())" for number in range(rates.rooms))
    statement = f"insert into chat_room (slug, name, created_at) values {rooms} on conflict do nothing"
    database.run("psql", "--dbname=chat", "--quiet", "--command", statement, user="postgres")
    with Background(Load(Target(site.host.address, site.domain), rates)) as load:
        yield load
        # Whoever was told that a message could not be stored comes back and sends it again.
        for connection in [chatter.connection for chatter in load.chatters if chatter.outstanding]:
            if connection:
                asyncio.run_coroutine_threadsafe(connection.close(), connection.loop).result()
    load.ledger.check()
    question = (
        "select message.id, room.slug, client, ref, text from chat_message as message "
        f"join chat_room as room on room.id = room_id where text like '{load.run} %'"
    )
    query = ["psql", "--dbname=chat", "-tA", "--field-separator=\t", "--command", question]
    shown = database.run(*query, user="postgres").splitlines()
    rows = [Row(int(line[0]), *line[1:]) for line in (row.split("\t") for row in shown)]
    stored = compare(load.ledger, load.chatters, load.run, rows)
    assert stored.once > 20
    assert (stored.lost, stored.duplicated, stored.altered, stored.unknown) == (0, 0, 0, 0), stored.details
