"""What a killed process and memory that runs out cost, on the host of the switches (Molecule scenario deploy, after test_deploy.py)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import pytest
from changing import APP, HOST, SITE, answers, children, gunicorn, main_process, talks
from hosts import wait_for
from light_load import becomes_whole, light_load, toll
from load import Load, Rates

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


def daphne() -> int:
    """Return the Daphne process that has the most connections: the kernel may have given another one none."""
    return max(HOST.processes(f"daphne-{APP}-*@{HOST.current(APP)}.service"), key=sockets_of)


def sockets_of(process: int) -> int:
    """Return how many connections a Daphne process has."""
    listed = HOST.run("ss", "--unix", "--no-header", "--processes", "state", "connected")
    return sum("/daphne.sock" in line and f"pid={process}," in line for line in listed.splitlines())


def postgresql() -> int:
    return int(HOST.run("sh", "-c", "head -n 1 /var/lib/postgresql/*/main/postmaster.pid"))


@cache
def workers() -> int:
    """Return how many workers there are in full strength: as many as before the first fault."""
    return len(children(gunicorn()))


def is_whole(load: Load) -> bool:
    """Say whether everything answers, runs in full strength, and everybody is back."""
    return bool(
        answers()
        and talks()
        and all(chatter.connection for chatter in load.chatters)
        and HOST.quintet("status", APP)["apps"][0]["healthy"]
        and len(children(gunicorn())) == workers()
    )


@pytest.fixture(scope="module")
def load() -> Iterator[Load]:
    """A light load on the site for as long as the tests run."""
    assert workers() > 1
    with light_load(SITE, RATES) as load:
        yield load


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


@pytest.mark.parametrize("kill", KILLS, ids=lambda kill: kill.name)
def test_a_killed_process_costs_what_it_did_and_comes_back(kill: Kill, load: Load, table: Table) -> None:
    wait_for("everybody is in", lambda: is_whole(load))
    process = kill.process()
    own = sockets_of(process)
    before = toll(load)
    HOST.run("sh", "-c", f"kill -9 {process}")
    seconds = becomes_whole(load, f"the death of {kill.name}", is_whole)
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


def test_no_start_of_a_server_makes_the_socket_block_for_the_others(load: Load) -> None:
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


def test_memory_that_runs_out_costs_a_service_and_no_other(load: Load, table: Table) -> None:
    wait_for("everybody is in", lambda: is_whole(load))
    before, old = toll(load), children(gunicorn())
    assert SITE.request("POST", "/eat?mebibytes=1").status == 200
    assert SITE.request("POST", "/eat?mebibytes=1000").status == 502
    seconds = becomes_whole(load, "its memory ran out", is_whole)
    lost = toll(load) - before
    table.append(("Gunicorn out of memory", *lost.cells, f"{seconds:.1f}"))
    assert children(gunicorn()) != old
    assert seconds <= 8
    assert (lost.handshakes, lost.sockets) == (0, 0), load.ledger.problems
    assert lost.requests <= UNDER_WAY, load.ledger.problems
