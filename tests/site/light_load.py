"""A light load on a site that is changed or hurt meanwhile: what it has lost so far, and whether all that it said is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hosts import Site
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


@contextmanager
def light_load(site: Site, rates: Rates) -> Iterator[Load]:
    """Put a load on a site of the chat meanwhile; after it everything acknowledged must be stored, once."""
    rooms = ", ".join(f"('load-{number}', 'Load {number}', now())" for number in range(rates.rooms))
    statement = f"insert into chat_room (slug, name, created_at) values {rooms} on conflict do nothing"
    site.host.run("psql", "--dbname=chat", "--quiet", "--command", statement, user="postgres")
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
    shown = site.host.run(*query, user="postgres").splitlines()
    rows = [Row(int(line[0]), *line[1:]) for line in (row.split("\t") for row in shown)]
    stored = compare(load.ledger, load.chatters, load.run, rows)
    assert stored.once > 20
    assert (stored.lost, stored.duplicated, stored.altered, stored.unknown) == (0, 0, 0, 0), stored.details
