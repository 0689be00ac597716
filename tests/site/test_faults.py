"""What goes wrong, one thing after the other, on a host that must go on serving (Molecule scenario faults)."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from hosts import Host, Site, receive, wait_for
from load import Background, Load, Rates, Target
from load_report import Row, compare
from websockets.exceptions import WebSocketException

HOST = Host("quintet-faults")
APP = "chat"
SITE = Site(HOST, "chat.test")

# As in the scenario's group_vars.
WORKERS = 2

HTTP = ("kept", "fresh", "slow", "post", "static", "page")
# Light: what is lost is counted in single requests, and the tests share the machine with the host.
RATES = Rates(
    kept=(2, 0.1),
    fresh=(1, 0.2),
    slow=(2, 0.5),
    post=(1, 0.2),
    static=(1, 0.2),
    visits=(1, 0.3),
    chatters=(12, 1.0),
    rooms=2,
    slow_seconds=0.5,
    pause_seconds=0.3,
)
# Requests that can be under way at once, those for files (which no app answers) left out.
UNDER_WAY = sum(clients for clients, _ in (RATES.kept, RATES.fresh, RATES.slow, RATES.post)) + 1


Table = list[tuple[str, ...]]


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    """What was lost by each fault, printed when all tests have run."""
    rows: Table = [("fault", "requests failed", "handshakes failed", "sockets ended", "seconds until whole")]
    yield rows
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print("", *("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows), sep="\n")


def talks(site: Site = SITE) -> str | None:
    """Say something in a room by WebSocket; returns the generation that acknowledged it, or None when nobody did."""
    try:
        with site.websocket("/ws/rooms/lobby/", close_timeout=1) as connection:
            connection.send('{"type": "ping"}')
            generation = str(receive(connection, "pong", 5)["generation"])
            ref = uuid.uuid4().hex
            connection.send(json.dumps({"type": "message", "ref": ref, "text": "still there?"}))
            return generation if receive(connection, "ack", 5)["ref"] == ref else None
    except (OSError, TimeoutError, WebSocketException):
        return None


def answers(site: Site = SITE) -> str | None:
    """Return the generation that answers over HTTP that all is well, or None when nobody does."""
    try:
        health = site.get("/healthz")
        return str(health.json["generation"]) if health.status == 200 else None
    except (OSError, ValueError):
        return None


# ---- kill -9, under load ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Toll:
    """What a load has lost so far: requests, handshakes, and sockets that ended unasked."""

    requests: int
    handshakes: int
    sockets: int

    @property
    def cells(self) -> tuple[str, str, str]:
        """What the table shows."""
        return str(self.requests), str(self.handshakes), str(self.sockets)

    def __sub__(self, before: Toll) -> Toll:
        return Toll(self.requests - before.requests, self.handshakes - before.handshakes, self.sockets - before.sockets)


def toll(load: Load) -> Toll:
    ended = dict(load.ledger.ended)
    return Toll(
        sum(count for (kind, outcome), count in ended.items() if kind in HTTP and outcome != "ok"),
        sum(count for (kind, outcome), count in ended.items() if kind == "handshake" and outcome != "ok"),
        sum(count for (kind, outcome), count in ended.items() if kind == "socket" and outcome != "1000"),
    )


def main_process(unit: str) -> int:
    return int(HOST.run("systemctl", "show", "--property=MainPID", "--value", unit))


def children(process: int) -> set[int]:
    return {int(child) for child in HOST.run("cat", f"/proc/{process}/task/{process}/children").split()}


def gunicorn() -> int:
    return main_process(f"gunicorn-{APP}@{HOST.current(APP)}.service")


def daphne() -> int:
    return main_process(f"daphne-{APP}-1@{HOST.current(APP)}.service")


def sockets_of(process: int) -> int:
    """Return how many connections a Daphne process has."""
    listed = HOST.run("ss", "--unix", "--no-header", "--processes", "state", "connected")
    return sum("/daphne.sock" in line and f"pid={process}," in line for line in listed.splitlines())


def postgresql() -> int:
    return int(HOST.run("sh", "-c", "head -n 1 /var/lib/postgresql/*/main/postmaster.pid"))


def loses_nothing(load: Load) -> None:
    """Watch the load for a while in which it must lose nothing."""
    before, answered = toll(load), load.ledger.total("ok")
    wait_for("more answers", lambda: load.ledger.total("ok") > answered + 20)
    assert toll(load) == before, load.ledger.problems[-5:]


def is_whole(load: Load) -> bool:
    """Say whether everything answers, runs in full strength, and everybody is back."""
    return bool(
        answers()
        and talks()
        and all(chatter.connection for chatter in load.chatters)
        and HOST.quintet("status", APP)["apps"][0]["healthy"]
        and len(children(gunicorn())) == WORKERS
    )


@pytest.fixture(scope="class")
def load() -> Iterator[Load]:
    """A light load on the site, as long as a class's tests run; then everything acknowledged must be stored, once."""
    rooms = ", ".join(f"('load-{number}', 'Load {number}', now())" for number in range(RATES.rooms))
    statement = f"insert into chat_room (slug, name, created_at) values {rooms} on conflict do nothing"
    HOST.run("psql", "--dbname=chat", "--quiet", "--command", statement, user="postgres")
    with Background(Load(Target(HOST.address, SITE.domain), RATES)) as load:
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
    shown = HOST.run("psql", "--dbname=chat", "-tA", "--field-separator=\t", "--command", question, user="postgres")
    rows = [Row(int(line[0]), *line[1:]) for line in (row.split("\t") for row in shown.splitlines())]
    stored = compare(load.ledger, load.chatters, load.run, rows)
    assert stored.once > 20
    assert (stored.lost, stored.duplicated, stored.altered, stored.unknown) == (0, 0, 0, 0), stored.details


@dataclass(frozen=True)
class Kill:
    """A process to kill, and the most that its death may cost; None for requests that fail as long as it is away."""

    name: str
    process: Callable[[], int]
    requests: int | None
    handshakes: int | None
    # Which sockets end: `none`, the killed process's `own`, or `all`, and again those that come back too soon.
    sockets: str
    seconds: float


KILLS = [
    # The socket unit holds what comes meanwhile, so only what was under way is lost.
    Kill("a Gunicorn worker", lambda: min(children(gunicorn())), UNDER_WAY, 0, "none", 5),
    Kill("Gunicorn's master", gunicorn, UNDER_WAY, 0, "none", 8),
    Kill("a Daphne process", daphne, 0, 0, "own", 8),
    Kill("Nginx's master", lambda: main_process("nginx.service"), None, None, "all", 5),
    # Messages are stored without it, and told by the next history.
    Kill("Redis", lambda: main_process("redis-chat.service"), 0, None, "all", 15),
    Kill("PostgreSQL", postgresql, None, None, "none", 15),
]


class TestUnderLoad:
    @pytest.mark.parametrize("kill", KILLS, ids=lambda kill: kill.name)
    def test_a_killed_process_costs_what_it_did_and_comes_back(self, kill: Kill, load: Load, table: Table) -> None:
        wait_for("everybody is in", lambda: is_whole(load))
        process = kill.process()
        own = sockets_of(process)
        before = toll(load)
        HOST.run("sh", "-c", f"kill -9 {process}")
        seconds = wait_for(f"the site after the death of {kill.name}", lambda: is_whole(load))
        lost = toll(load) - before
        table.append((f"{kill.name} killed", *lost.cells, f"{seconds:.1f}"))
        assert HOST.fails("test", "-d", f"/proc/{process}")
        assert seconds <= kill.seconds
        assert kill.requests is None or lost.requests <= kill.requests, load.ledger.problems
        assert kill.handshakes is None or lost.handshakes <= kill.handshakes, load.ledger.problems
        if kill.sockets == "none":
            assert lost.sockets == 0, load.ledger.problems
        if kill.sockets == "own":
            assert 0 < lost.sockets <= own, load.ledger.problems
        # And that is the end of it.
        loses_nothing(load)

    def test_memory_that_runs_out_costs_a_service_and_no_other(self, load: Load, table: Table) -> None:
        wait_for("everybody is in", lambda: is_whole(load))
        before, master = toll(load), gunicorn()
        workers = children(master)
        assert SITE.get("/faults/eat?mebibytes=1").status == 200
        assert SITE.get("/faults/eat?mebibytes=1000").status == 502
        seconds = wait_for("the site after its memory ran out", lambda: is_whole(load))
        lost = toll(load) - before
        table.append(("Gunicorn out of memory", *lost.cells, f"{seconds:.1f}"))
        assert children(gunicorn()) != workers
        assert seconds <= 8
        assert (lost.handshakes, lost.sockets) == (0, 0), load.ledger.problems
        assert lost.requests <= UNDER_WAY, load.ledger.problems
        loses_nothing(load)
