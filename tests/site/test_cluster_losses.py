"""What clients see when a site of several hosts loses one, or the network between them, and when it grows (Molecule scenario cluster).

One light load is on the site for as long as the tests run, and each test says what of it was lost; at its end
every acknowledged message must be stored, once.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import resource
import threading
import time
import uuid
from collections import Counter
from collections.abc import Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, TypeVar
from urllib.parse import urlencode

import pytest
from cluster import ADDRESSES, APPS, FOLDER, HOSTS, SITE, asked, container, network_cut, requests_on, site, sockets_on
from hosts import Site, receive, wait_for
from light_load import HTTP, becomes_whole, light_load
from load import Load, Rates
from load_ledger import HANDSHAKE, SOCKET
from websockets import Origin
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

# Light: what is lost is counted in single requests, and the tests share the machine with the hosts.
RATES = Rates(
    kept=(2, 0.1),
    fresh=(1, 0.2),
    slow=(2, 0.5),
    post=(1, 0.5),
    static=(1, 0.2),
    visits=(1, 0.5),
    chatters=(12, 3.0),
    rooms=2,
    slow_seconds=0.5,
    pause_seconds=0.5,
    # As the sample app's page.
    answer_seconds=10,
)
# Requests that can be under way at once: those of the load for pages and posts, of which each file's client asks for one at times.
UNDER_WAY = sum(clients for clients, _ in (RATES.kept, RATES.fresh, RATES.slow, RATES.post, RATES.static))
# Of these, those that are never asked of a second host.
POSTS_UNDER_WAY = RATES.post[0]
# A page that needs neither database nor Redis, and one that needs the database.
PLAIN, PAGE = "/telling", "/rooms/load-0/"
# For so long a network stays cut: longer than the longest time-out.
CUT_SECONDS = 20.0
# What the edge gives an app host to accept a connection, and the way there and back.
PLAIN_SECONDS = 3.0
# The time-outs for a connection to the database that was cut, and for a new one, and the way there and back.
DATABASE_SECONDS = 10 + 5 + 3.0
# Those of a channel layer that is late: 10 s until a wait is given up, 3 s to join again.
CHANNEL_LAYER_SECONDS = 10 + 3 + 2.0
# Within these everybody in a room has heard what was said.
HEARD_SECONDS = 3.0
# Until a host has booted, and everybody is back, on a machine that does other work too.
PATIENCE = 180.0
# WebSockets that are open while the edge is reloaded, and how often it is.
CROWD = 2000
RELOADS = 3
Table = list[tuple[str, ...]]
Result = TypeVar("Result")


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    """What clients saw of each loss, printed when all tests have run."""
    rows: Table = [("loss", "requests failed", "handshakes failed", "sockets ended", "longest without", "whole after")]
    yield rows
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print("", *("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows), sep="\n")


@pytest.fixture(scope="module")
def load() -> Iterator[Load]:
    """A light load on the site, through its edge, for as long as the tests run."""
    with light_load(SITE, RATES, HOSTS["db1"]) as load:
        yield load


# ---- what is seen -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lost:
    """What a load has lost since `at` (seconds of the epoch), by kind and outcome."""

    at: float
    ended: Counter[tuple[str, str]]

    @property
    def requests(self) -> int:
        """Requests without a right answer."""
        return sum(count for (kind, _), count in self.ended.items() if kind in HTTP)

    @property
    def handshakes(self) -> int:
        """Handshakes that opened no socket."""
        return sum(count for (kind, _), count in self.ended.items() if kind == HANDSHAKE)

    @property
    def sockets(self) -> int:
        """Sockets that did not end by the client's will."""
        return sum(count for (kind, _), count in self.ended.items() if kind == SOCKET)

    def cell(self, *kinds: str) -> str:
        """What a table shows of some kinds."""
        found = {f"{kind} {outcome}": count for (kind, outcome), count in self.ended.items() if kind in kinds}
        return ", ".join(f"{count} x {what}" for what, count in sorted(found.items())) or "0"


def count(load: Load) -> Lost:
    """Return what a load has lost since it began."""
    return Lost(
        time.time(),
        Counter(
            {
                (kind, outcome): count
                for (kind, outcome), count in dict(load.ledger.ended).items()
                if is_lost(kind, outcome)
            }
        ),
    )


def is_lost(kind: str, outcome: str) -> bool:
    """Say whether an outcome is not what a client wanted."""
    return outcome not in {SOCKET: ("1000",), HANDSHAKE: ("ok",)}.get(kind, ("ok", "acknowledged"))


def lost_since(load: Load, before: Lost) -> Lost:
    """Return what a load has lost since it was counted."""
    return Lost(before.at, count(load).ended - before.ended)


def longest_without(load: Load, at: float) -> float:
    """Return for how long a chatter whose socket ended since a moment was without one; infinity if one still is."""
    longest = 0.0
    for chatter in load.chatters:
        own = [socket for socket in load.ledger.sockets if socket.client == chatter.client]
        for socket, following in zip(own, [*own[1:], None], strict=True):
            if socket.closed_at and socket.closed_at >= at:
                longest = max(longest, following.opened_at - socket.closed_at if following else float("inf"))
    return longest


@dataclass(frozen=True)
class Answered:
    """How a page was answered; status 0: not at all."""

    status: int
    seconds: float


class Watch:
    """Asks the edge for some pages, each as often at a time as it is named, as a context; each answer is in `answers` by its path."""

    def __init__(self, *paths: str) -> None:
        self.answers: dict[str, list[Answered]] = {path: [] for path in paths}
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(path,), daemon=True) for path in paths]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def statuses(self, path: str) -> Counter[int]:
        """Return how many answers had which status."""
        return Counter(answer.status for answer in self.answers[path])

    def slowest(self, path: str) -> float:
        """Return the seconds of the slowest answer."""
        return max(answer.seconds for answer in self.answers[path])

    def _ask(self, path: str) -> None:
        while not self._done.is_set():
            began = time.monotonic()
            self.answers[path].append(Answered(status(path), time.monotonic() - began))
            self._done.wait(0.2)


def status(path: str) -> int:
    """Ask the edge for a page; returns the answer's status, 0 without one."""
    connection = http.client.HTTPConnection(ADDRESSES["edge1"], timeout=60)
    try:
        connection.request("GET", path, headers={"Host": SITE.domain})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def is_heard(load: Load, room: str) -> bool:
    """Say something in a room by POST; returns whether all chatters of the room have heard it soon, on whatever host they are."""
    visitor = Site(SITE.host, SITE.domain)
    page = visitor.get(f"/rooms/{room}/")
    if page.status != 200:
        return False
    said = visitor.request(
        "POST",
        f"/rooms/{room}/messages?client=test&name=Test",
        urlencode({"text": "Does everybody hear this?", "ref": uuid.uuid4().hex}),
        {
            "Accept": "application/json",
            "Content-Type": "application/x-www-form-urlencoded",
            "X-CSRFToken": visitor.cookies["csrftoken"],
        },
    )
    if said.status != 201:
        return False
    end = time.monotonic() + HEARD_SECONDS
    while not all(said.json["id"] in chatter.seen for chatter in load.chatters if chatter.room == room):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def are_sockets_shared_out(hosts: tuple[str, ...]) -> bool:
    """Say whether the edge gives a new socket to the host that has the fewest, unless all have about as many."""
    has = {name: sockets_on(HOSTS[name]) for name in hosts}
    fewest = min(has, key=lambda name: has[name])
    # Visits come and go.
    if max(has.values()) - has[fewest] <= 2:
        return True
    with suppress(OSError, WebSocketException), SITE.websocket("/ws/health/") as connection:
        connection.send('{"type": "ping"}')
        return bool(receive(connection, "pong")["generation"] == HOSTS[fewest].current("chat"))
    return False


def is_whole(load: Load, hosts: tuple[str, ...] = APPS) -> bool:
    """Say whether the edge asks these app hosts, all are well, everybody has a socket, and everybody hears everybody."""
    return (
        all(chatter.connection for chatter in load.chatters)
        and all(status("/healthz") == 200 for _ in range(2 * len(hosts)))
        and answering(10) == {HOSTS[name].name for name in hosts}
        and all(is_heard(load, room) for room in load.rooms)
        # For sockets a host that failed is left out apart from requests.
        and are_sockets_shared_out(hosts)
    )


def spread(load: Load, hosts: tuple[str, ...] = APPS) -> None:
    """Have everybody come in anew, so that all app hosts have as many sockets, as after a while of coming and going."""
    wait_for("everybody is in", partial(is_whole, load, hosts), PATIENCE)
    for chatter in load.chatters:
        if connection := chatter.connection:
            asyncio.run_coroutine_threadsafe(connection.close(), connection.loop).result()
    wait_for("everybody is back", partial(is_whole, load, hosts), PATIENCE)
    # Visits come and go.
    has = {name: sockets_on(HOSTS[name]) for name in hosts}
    assert min(has.values()) >= len(load.chatters) / len(hosts) - 2, has


def answering(requests: int) -> set[str]:
    """Return which app hosts answer."""
    hosts = set()
    for _ in range(requests):
        with suppress(OSError, ValueError):  # a page that says that nobody answers is no JSON
            hosts.add(asked()["host"])
    return hosts


def shared_out(requests: int, hosts: tuple[str, ...] = APPS) -> dict[str, int]:
    """Send so many requests; returns how many each host got meanwhile, with those of the load: of all together each gets its share."""
    before = {name: requests_on(HOSTS[name]) for name in hosts}
    for _ in range(requests):
        asked()
    return {name: requests_on(HOSTS[name]) - before[name] for name in hosts}


def is_even(shares: dict[str, int]) -> bool:
    """Say whether hosts got as many requests, within a tenth of all."""
    print(shares)
    return max(shares.values()) - min(shares.values()) <= sum(shares.values()) / 10


def main_processes(*but: str) -> dict[str, str]:
    """Return the main process of each service of ours, on all hosts but some."""
    units = ["nginx.service", "postgresql@*.service", "redis-*.service", "gunicorn-*.service", "daphne-*.service"]
    show = ["systemctl", "show", "--property=Id,MainPID,InvocationID", "--state=active", *units]
    hosts = [name for name in (*APPS, "edge1", "db1", "redis1") if name not in but]
    return {name: HOSTS[name].run(*show) for name in hosts}


@contextmanager
def loss(load: Load, table: Table, what: str, seconds: float, hosts: tuple[str, ...] = APPS) -> Iterator[Lost]:
    """Lose something meanwhile, and again become whole within some seconds of its end, of itself.

    Gives what was lost until then; it is filled in at the end.
    """
    spread(load)
    before = count(load)
    lost = Lost(before.at, Counter())
    yield lost
    took = becomes_whole(load, what, partial(is_whole, hosts=hosts))
    lost.ended.update(lost_since(load, before).ended)
    without = longest_without(load, before.at)
    table.append(
        (
            *(what, lost.cell(*HTTP), lost.cell(HANDSHAKE), lost.cell(SOCKET)),
            *(f"{without:.1f} s" if lost.sockets else "", f"{took:.1f} s"),
        )
    )
    print(table[-1], *load.ledger.problems[-30:], sep="\n")
    assert took <= seconds


# ---- an app host ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["kill", pytest.param("stop", marks=pytest.mark.thorough)])
def test_an_app_host_that_goes_costs_what_it_was_answering_and_its_sockets_find_another(
    command: str, load: Load, table: Table
) -> None:
    with loss(load, table, f"an app host: docker {command}", 10, hosts=("app1",)) as lost:
        on_it = sockets_on(HOSTS["app2"])
        container(command, "app2")
    try:
        assert lost.requests <= (POSTS_UNDER_WAY if command == "kill" else 0), lost
        assert lost.handshakes == 0, lost
        # A visit may have come meanwhile.
        assert 0 < lost.sockets <= on_it + RATES.visits[0], (lost, on_it)
        assert longest_without(load, lost.at) <= 5
    finally:
        container("start", "app2")
    before = count(load)
    took = wait_for("both hosts again", partial(is_whole, load), PATIENCE)
    # Its share: every other request, and of new sockets all until it has as many.
    assert is_even(shared_out(60))
    with ExitStack() as stack:
        few, most = sockets_on(HOSTS["app2"]), sockets_on(HOSTS["app1"])
        for _ in range(6):
            stack.enter_context(SITE.websocket("/ws/rooms/lobby/"))
        assert sockets_on(HOSTS["app2"]) >= min(few + 5, most)
    back = lost_since(load, before)
    table.append(("and docker start", back.cell(*HTTP), back.cell(HANDSHAKE), back.cell(SOCKET), "", f"{took:.1f} s"))
    assert not back.ended, load.ledger.problems[-5:]


# ---- the network ------------------------------------------------------------------------------------------------------


def test_a_network_cut_to_the_database_is_bounded_by_time_outs_and_heals(load: Load, table: Table) -> None:
    before = main_processes()
    what = f"network of one app host to the database cut for {CUT_SECONDS:.0f} s"
    # By three at a time, since one that is asked of the host that was cut says nothing of the other.
    with loss(load, table, what, 15), Watch(PLAIN, PAGE, PAGE, PAGE) as watch, network_cut("app1", "db1"):
        time.sleep(CUT_SECONDS)
    print(watch.statuses(PAGE), watch.slowest(PAGE), watch.statuses(PLAIN), watch.slowest(PLAIN))
    assert set(watch.statuses(PLAIN)) == {200}
    assert watch.slowest(PLAIN) <= PLAIN_SECONDS
    # It was cut, and the other host was asked as well.
    assert watch.statuses(PAGE)[500] > 0
    assert watch.statuses(PAGE)[200] > 0
    assert set(watch.statuses(PAGE)) <= {200, 500}, watch.statuses(PAGE)
    assert watch.slowest(PAGE) <= DATABASE_SECONDS
    assert main_processes() == before


def test_a_network_cut_to_redis_is_bounded_by_time_outs_and_heals(load: Load, table: Table) -> None:
    before = main_processes()
    what = f"network of all app hosts to Redis cut for {CUT_SECONDS:.0f} s"
    with loss(load, table, what, 15) as lost, Watch(PLAIN, PAGE) as watch, network_cut("redis1", *APPS):
        time.sleep(CUT_SECONDS)
        closed = [socket for socket in load.ledger.sockets if socket.client and socket.opened_at < lost.at]
        longest = max((socket.closed_at or time.time()) - lost.at for socket in closed)
    print(
        watch.statuses(PAGE),
        watch.slowest(PAGE),
        watch.statuses(PLAIN),
        watch.slowest(PLAIN),
        f"closed after {longest:.1f} s",
    )
    # Pages, and messages by POST, do without it.
    for path in (PLAIN, PAGE):
        assert set(watch.statuses(path)) == {200}
        assert watch.slowest(path) <= PLAIN_SECONDS
    assert lost.requests == 0, lost
    # Nobody stays who would hear nothing and not know it.
    assert longest <= CHANNEL_LAYER_SECONDS
    assert main_processes() == before


# ---- database and Redis -----------------------------------------------------------------------------------------------


def test_sockets_rejoin_their_groups_when_redis_restarts(load: Load, table: Table) -> None:
    before = main_processes("redis1")
    with loss(load, table, "Redis restarted", 10) as lost:
        HOSTS["redis1"].run("systemctl", "restart", "redis-chat.service")
    assert lost.requests == 0, lost
    assert longest_without(load, lost.at) <= 5
    assert main_processes("redis1") == before


def test_a_database_that_restarts_costs_what_was_asked_meanwhile(load: Load, table: Table) -> None:
    before = main_processes("db1")
    with loss(load, table, "PostgreSQL restarted", 10) as lost:
        began = time.monotonic()
        HOSTS["db1"].run("systemctl", "restart", "postgresql.service")
        away = time.monotonic() - began
    a_second = sum(clients / interval for clients, interval in (RATES.kept, RATES.fresh, RATES.post, RATES.static))
    assert lost.requests <= UNDER_WAY + (away + 1) * a_second, lost
    # Messages that could not be stored are sent again, over the same sockets.
    assert lost.sockets == 0, lost
    assert main_processes("db1") == before


# ---- the edge ---------------------------------------------------------------------------------------------------------


async def open_socket() -> ClientConnection:
    """Open a WebSocket that needs nothing but its server."""
    return await connect(
        f"ws://{SITE.domain}/ws/health/",
        origin=Origin(f"http://{SITE.domain}"),
        host=ADDRESSES["edge1"],
        port=80,
        compression=None,
        proxy=None,
        ping_interval=None,
        open_timeout=30,
    )


async def ask(connection: ClientConnection) -> str:
    """Return what a WebSocket answers, in a word: pong, or how it failed."""
    try:
        await connection.send('{"type": "ping"}')
        return str(json.loads(await asyncio.wait_for(connection.recv(), 30))["type"])
    except (WebSocketException, TimeoutError) as error:
        return repr(error)


class Crowd:
    """Many WebSockets that are open meanwhile, as a context."""

    def __init__(self, sockets: int) -> None:
        self.sockets = sockets
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._at_once = asyncio.Semaphore(50)
        self._connections: list[ClientConnection] = []

    def __enter__(self) -> Self:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2 * self.sockets)), hard))
        self._thread.start()
        self._connections = self._all(self._enter() for _ in range(self.sockets))
        return self

    def __exit__(self, *_: object) -> None:
        self._all(connection.close() for connection in self._connections)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def answers(self) -> Counter[str]:
        """Ask each; returns how many answered what."""
        return Counter(self._all(self._ask(connection) for connection in self._connections))

    def newcomers(self, number: int) -> Counter[str]:
        """Let some more in, one after the other, ask each, and let it go; returns how many answered what."""

        async def come_and_go() -> Counter[str]:
            answers: Counter[str] = Counter()
            for _ in range(number):
                try:
                    connection = await open_socket()
                    answers[await ask(connection)] += 1
                    await connection.close()
                except (WebSocketException, OSError, TimeoutError) as error:
                    answers[repr(error)] += 1
            return answers

        return asyncio.run_coroutine_threadsafe(come_and_go(), self._loop).result()

    async def _enter(self) -> ClientConnection:
        async with self._at_once:
            return await open_socket()

    async def _ask(self, connection: ClientConnection) -> str:
        async with self._at_once:
            return await ask(connection)

    def _all(self, work: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
        async def gather() -> list[Result]:
            return await asyncio.gather(*work)

        return asyncio.run_coroutine_threadsafe(gather(), self._loop).result()


def test_a_reload_of_the_edge_loses_no_socket_of_thousands(load: Load, table: Table) -> None:
    new: Counter[str] = Counter()
    # They come before anything is counted: to let them all in takes the machine for some seconds, which is no reload's doing.
    with Crowd(CROWD) as crowd, loss(load, table, f"the edge reloaded {RELOADS} times, {CROWD} sockets", 10) as lost:
        for _ in range(RELOADS):
            with ThreadPoolExecutor() as threads:
                reload = threads.submit(HOSTS["edge1"].run, "systemctl", "reload", "nginx.service")
                new += crowd.newcomers(20)
                reload.result()
        old = crowd.answers()
    assert old == {"pong": CROWD}
    assert new == {"pong": 20 * RELOADS}
    assert not lost.ended, lost


# ---- one more ---------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_an_app_host_more_and_one_less_are_a_line_and_a_run_and_nobody_notices(load: Load, table: Table) -> None:
    hosts = FOLDER / "inventory" / "hosts.yml"
    without = hosts.read_text()
    line = f"app2: {{ansible_host: {ADDRESSES['app2']}}}"
    assert line in without
    three = (*APPS, "app3")
    try:
        with loss(load, table, "an app host more", 10, hosts=three) as lost:
            hosts.write_text(without.replace(line, f"{line}, app3: {{ansible_host: {ADDRESSES['app3']}}}"))
            played = site()
            assert played.code == 0, played.output[-6000:]
        assert not lost.ended, lost
        # Its share of requests, and of new sockets: at a reload the edge begins to count them anew.
        assert is_even(shared_out(60, three))
        spread(load, three)
    finally:
        hosts.write_text(without)
    before = count(load)
    played = site()
    assert played.code == 0, played.output[-6000:]
    assert answering(30) == {HOSTS[name].name for name in APPS}
    # Nothing new is sent there; the sockets that it has stay until it is switched off, and their people find another host then.
    had = sockets_on(HOSTS["app3"])
    with ExitStack() as stack:
        for _ in range(6):
            stack.enter_context(SITE.websocket("/ws/rooms/lobby/"))
        assert sockets_on(HOSTS["app3"]) <= had
    gone = lost_since(load, before)
    table.append(("an app host less", gone.cell(*HTTP), gone.cell(HANDSHAKE), gone.cell(SOCKET), "", ""))
    assert not gone.ended, load.ledger.problems[-5:]
    container("stop", "app3")
    wait_for("everybody elsewhere", partial(is_whole, load), PATIENCE)
    assert longest_without(load, gone.at) <= 5
