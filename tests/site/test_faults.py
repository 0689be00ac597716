"""What goes wrong under load, one thing after the other, on a host that must go on serving (Molecule scenario faults)."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from changing import (
    APP,
    FAULTS,
    HOST,
    SITE,
    WORKERS,
    another_lock,
    answers,
    change_code,
    children,
    deploy,
    deploy_killed,
    deploy_well,
    earlier_good,
    fails,
    generations,
    gunicorn,
    main_process,
    refused,
    runs,
    serving,
    status,
    talks,
)
from hosts import WAIT_SECONDS, full, wait_for
from load import Background, Load, Rates, Target
from load_report import Row, compare

earlier = pytest.fixture(earlier_good)

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
# The most that can be asked in a second: of HTTP in all, and of handshakes while nobody is let in.
REQUESTS_A_SECOND = sum(
    clients / interval
    for clients, interval in (RATES.kept, RATES.fresh, RATES.slow, RATES.post, RATES.static, RATES.visits)
)
HANDSHAKES_A_SECOND = RATES.visits[0] / RATES.visits[1] + RATES.chatters[0] / (RATES.pause_seconds / 2)
Table = list[tuple[str, ...]]


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    """What was lost by each fault, printed when all tests have run."""
    rows: Table = [("fault", "requests failed", "handshakes failed", "sockets ended", "seconds until whole")]
    yield rows
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print("", *("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows), sep="\n")


# ---- kill -9 --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Toll:
    """What a load has lost so far: requests, handshakes, and sockets that ended without being told to come back."""

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
        sum(count for (kind, outcome), count in ended.items() if kind == "socket" and outcome not in ("1000", "1012")),
    )


def daphne() -> int:
    """Return the Daphne process that has the most connections: the kernel may have given another one none."""
    return max(HOST.processes(f"daphne-{APP}-*@{HOST.current(APP)}.service"), key=sockets_of)


def sockets_of(process: int) -> int:
    """Return how many connections a Daphne process has."""
    listed = HOST.run("ss", "--unix", "--no-header", "--processes", "state", "connected")
    return sum("/daphne.sock" in line and f"pid={process}," in line for line in listed.splitlines())


def postgresql() -> int:
    return int(HOST.run("sh", "-c", "head -n 1 /var/lib/postgresql/*/main/postmaster.pid"))


def is_whole(load: Load) -> bool:
    """Say whether everything answers, runs in full strength, and everybody is back."""
    return bool(
        answers()
        and talks()
        and all(chatter.connection for chatter in load.chatters)
        and HOST.quintet("status", APP)["apps"][0]["healthy"]
        and len(children(gunicorn())) == WORKERS
    )


def loses_nothing(load: Load) -> bool:
    """Watch the load for a while; returns whether it has lost nothing in it."""
    before, answered = toll(load), load.ledger.total("ok")
    wait_for("more answers", lambda: load.ledger.total("ok") > answered + 20)
    return toll(load) == before


def becomes_whole(load: Load, fault: str) -> float:
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
    """A process to kill, and the most that its death may cost; None for all that is asked for as long as it is away."""

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
        seconds = becomes_whole(load, f"the death of {kill.name}")
        lost = toll(load) - before
        table.append((f"{kill.name} killed", *lost.cells, f"{seconds:.1f}"))
        assert HOST.fails("test", "-d", f"/proc/{process}")
        assert seconds <= kill.seconds, load.ledger.problems
        requests, handshakes = (
            most if most is not None else UNDER_WAY + seconds * a_second
            for most, a_second in ((kill.requests, REQUESTS_A_SECOND), (kill.handshakes, HANDSHAKES_A_SECOND))
        )
        assert lost.requests <= requests, load.ledger.problems
        assert lost.handshakes <= handshakes, load.ledger.problems
        chatters = RATES.chatters[0]
        least, most = {"none": (0, 0), "own": (1, own), "all": (chatters, chatters + handshakes)}[kill.sockets]
        assert least <= lost.sockets <= most, load.ledger.problems

    def test_no_start_of_a_server_makes_the_socket_block_for_the_others(self, load: Load) -> None:
        wait_for("everybody is in", lambda: is_whole(load))
        one, other = (f"daphne-{APP}-{number}@{HOST.current(APP)}.service" for number in (1, 2))
        # As soon as the new process is there, before it has read its first line. 3 is the first descriptor that systemd passes; its
        # flags belong to the open socket, not to the process.
        script = f"""
            show() {{ systemctl show --property=MainPID --value $1; }}
            first=$(show {one})
            kill -9 $first
            until now=$(show {one}) && [ $now != $first ] && [ $now != 0 ]; do :; done
            sed -n 's/^flags:\\s*//p' /proc/$(show {other})/fdinfo/3
        """
        flags = HOST.run("sh", "-euc", script)
        assert int(flags, 8) & os.O_NONBLOCK, flags

    def test_memory_that_runs_out_costs_a_service_and_no_other(self, load: Load, table: Table) -> None:
        wait_for("everybody is in", lambda: is_whole(load))
        before, master = toll(load), gunicorn()
        workers = children(master)
        assert SITE.request("POST", "/faults/eat?mebibytes=1").status == 200
        assert SITE.request("POST", "/faults/eat?mebibytes=1000").status == 502
        seconds = becomes_whole(load, "its memory ran out")
        lost = toll(load) - before
        table.append(("Gunicorn out of memory", *lost.cells, f"{seconds:.1f}"))
        assert children(gunicorn()) != workers
        assert seconds <= 8
        assert (lost.handshakes, lost.sockets) == (0, 0), load.ledger.problems
        assert lost.requests <= UNDER_WAY, load.ledger.problems


# ---- candidates that fail -------------------------------------------------------------------------------------------


@pytest.fixture
def built(load: Load) -> str:
    """A candidate that was built and never switched to, since its controller was killed just then; its lock is ended."""
    known = set(generations())
    change_code()
    deploy_killed("activate | Start, probe and switch to the generation")
    HOST.run("quintet", "unlock", APP)
    (candidate,) = set(generations()) - known
    return candidate


class TestFailingCandidates:
    @pytest.mark.parametrize("fault", FAULTS)
    def test_a_candidate_that_fails_is_kept_and_nobody_notices(self, fault: str, load: Load) -> None:
        before, known, lost = serving(), set(generations()), toll(load)
        fails(deploy(fault=fault), *FAULTS[fault])
        assert serving() == before
        (candidate,) = set(generations()) - known
        assert generations()[candidate]["state"] == "failed"
        assert "failed on" in refused("quintet", "rollback", APP, candidate)
        wait_for("the end of the candidate", lambda: not runs(candidate))
        assert status()["lock"] is None
        assert toll(load) == lost, load.ledger.problems[-5:]

    def test_a_socket_in_the_way(self, built: str, load: Load) -> None:
        before, lost = serving(), toll(load)
        HOST.run("mkdir", "--parents", f"/run/quintet/{APP}/{built}/gunicorn.sock/in/the/way")
        told = refused("quintet", "activate", APP, built)
        assert f"gunicorn-{APP}@{built}.socket did not start" in told
        assert "Step: start" in told
        assert "Address already in use" in told
        assert generations()[built]["state"] == "failed"
        assert "failed on" in refused("quintet", "activate", APP, built)
        assert serving() == before
        assert toll(load) == lost, load.ledger.problems[-5:]

    @pytest.mark.parametrize(
        ("path", "free"),
        [
            (f"/srv/{APP}/generations", 0),
            (f"/srv/{APP}/generations", 600_000),
            (f"/var/lib/quintet/{APP}", 0),
            (f"/etc/quintet/{APP}", 0),
            (f"/srv/{APP}/venvs", 0),
            (f"/srv/{APP}/venvs", 30_000_000),
            (f"/var/cache/quintet/{APP}", 0),
        ],
        ids=["source", "static files", "state", "environment", "virtual environment", "packages", "cache"],
    )
    def test_a_disk_that_is_full_while_it_is_built(self, path: str, free: int, load: Load) -> None:
        before, lost = serving(), toll(load)
        with another_lock(), full(HOST, path, free):
            played = deploy(mark=uuid.uuid4().hex)
            assert serving() == before
        fails(played, "No space left on device", f"quintet prune {APP}")
        assert status()["lock"] is None
        assert toll(load) == lost, load.ledger.problems[-5:]

    def test_the_next_good_one_serves(self, load: Load) -> None:
        before, lost = serving(), toll(load)
        change_code()
        assert deploy_well() != before
        assert toll(load) == lost, load.ledger.problems[-5:]

    def test_a_disk_that_is_full_when_it_is_switched_to(self, earlier: str, load: Load) -> None:
        before, lost = serving(), toll(load)
        with full(HOST, f"/var/lib/quintet/{APP}"):
            told = refused("quintet", "activate", APP, earlier)
            assert serving() == before
        assert "No space left on device" in told
        assert f"quintet prune {APP}" in told
        wait_for(f"the end of {earlier}", lambda: not runs(earlier))
        # What once served is not spoilt by a disk that was full.
        assert generations()[earlier]["state"] == "good"
        assert toll(load) == lost, load.ledger.problems[-5:]

    def test_a_disk_that_is_full_when_the_switch_is_confirmed(self, earlier: str, load: Load) -> None:
        before, lost = serving(), toll(load)
        HOST.run("quintet", "activate", APP, earlier, "--confirm-within", "60")
        assert serving() == earlier
        with full(HOST, f"/var/lib/quintet/{APP}"):
            told = refused("quintet", "confirm", APP, earlier)
            assert serving() == earlier
        assert "No space left on device" in told
        assert f"quintet prune {APP}" in told
        # It is as before the attempt: it can be taken back as well as confirmed.
        assert status()["unconfirmed"]["before"] == before
        HOST.run("quintet", "undo", APP)
        assert serving() == before
        HOST.run("quintet", "activate", APP, earlier, "--confirm-within", "60")
        HOST.run("quintet", "confirm", APP, earlier)
        assert status()["unconfirmed"] is None
        assert serving() == earlier
        assert toll(load) == lost, load.ledger.problems[-5:]

    @pytest.mark.parametrize("path", [f"/srv/{APP}", f"/var/lib/quintet/{APP}"], ids=["generations", "state"])
    def test_a_full_disk_is_pruned(self, path: str, earlier: str, load: Load) -> None:
        before, lost = serving(), toll(load)
        change_code()
        other = deploy_well()
        with full(HOST, path):
            there = set(generations())
            HOST.run("quintet", "prune", APP, "--keep", "1")
            left = set(generations())
            assert serving() == other
        assert {before, other} <= left < there
        assert earlier not in left
        assert toll(load) == lost, load.ledger.problems[-5:]
