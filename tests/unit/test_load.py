"""The counting load against small servers that lose, duplicate, answer wrongly, close and refuse: all of it must be counted."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request
from websockets.http11 import Response as WebSocketResponse

# Last: tools/ has a module hosts, too.
sys.path.append(str(Path(__file__).parents[1] / "site"))

import load
from load import Background, Chatter, Load, Rates, Target
from load_ledger import HANDSHAKE, MESSAGE, SOCKET, Answered, Ledger, Message, Socket
from load_report import Row, Switch, Timeline, compare, drains, old_answers

GENERATION = "11111111-22222222"
NOTHING = (0, 0.01)
QUIET = Rates(NOTHING, NOTHING, NOTHING, NOTHING, NOTHING, NOTHING, NOTHING, 2, slow_seconds=0.01, pause_seconds=0.05)
HTTP = replace(QUIET, kept=(2, 0.01), fresh=(1, 0.01), slow=(1, 0.01), post=(1, 0.02), static=(1, 0.02))
CHAT = replace(QUIET, visits=(1, 0.02), chatters=(6, 0.02))

PAGE = '<html><link href="/static/chat/chat.0123456789ab.css"><div data-slug="{slug}"></div></html>'


def every(count: int, what: str) -> Callable[[], str]:
    """Return a fault that comes with every so-manieth request."""
    numbers = itertools.count(1)
    return lambda: what if next(numbers) % count == 0 else ""


class Faulty:
    """A chat site with faults: `http_fault` and `chat_fault` are asked at each request and each message what to do wrong."""

    def __init__(self) -> None:
        self.http_fault: Callable[[], str] = lambda: ""
        self.chat_fault: Callable[[], str] = lambda: ""
        self.handshake_fault: Callable[[], str] = lambda: ""
        self.done: Counter[str] = Counter()
        self.requests = 0
        self.rows: list[Row] = []
        self._rooms: dict[str, set[ServerConnection]] = {}
        self._version = "1"

    async def __aenter__(self) -> Faulty:
        self._http = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._websocket: Server = await serve(self._chat, "127.0.0.1", 0, process_request=self._greet, compression=None)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._http.close()
        self._websocket.close()
        await self._websocket.wait_closed()

    @property
    def target(self) -> Target:
        ports = [next(iter(server.sockets)).getsockname()[1] for server in (self._http, self._websocket)]
        return Target("127.0.0.1", "chat.test", *ports)

    def refuse_connections(self) -> None:
        self._http.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._answer(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, target, _ = head.split(" ", 2)
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head.split("\r\n")[1:])}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        fault = self.http_fault() if self.requests else ""
        self.requests += 1
        if fault:
            self.done[fault] += 1
        if fault == "drop":
            return False
        status, content = self._content(method, target, body.decode(), fault)
        answer = f"HTTP/1.1 {status} X\r\nSet-Cookie: csrftoken=t; Path=/\r\n".encode()
        if fault == "chunked":
            chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(content), content)
            answer += b"Transfer-Encoding: chunked\r\n\r\n" + chunks
        else:
            answer += b"Content-Length: %d\r\n\r\n%s" % (len(content), content)
        writer.write(answer[:-1] if fault == "half" else answer + (b"more" if fault == "more" else b""))
        await writer.drain()
        return fault not in ("half", "close idle")

    def _content(self, method: str, target: str, body: str, fault: str) -> tuple[int, bytes]:
        if fault == "500":
            return 500, b"oh"
        path, query = urlsplit(target).path, parse_qs(urlsplit(target).query)
        if path == "/who":
            number = "another" if fault == "wrong" else query["number"][0]
            version = "2" if fault == "mixed" else "1"
            answer = {"number": number, "generation": GENERATION, "version": version, "mark": "m"}
            return 200, json.dumps(answer).encode()
        if method == "POST":
            form = parse_qs(body)
            identifier = self._store(path.split("/")[2], query["client"][0], form["ref"][0], form["text"][0], fault)
            return 201, json.dumps({"id": identifier, "text": form["text"][0]}).encode()
        if path.startswith("/static/"):
            return 200, b"other" if fault == "wrong" else b"style"
        return 200, PAGE.format(slug="nowhere" if fault == "wrong" else path.split("/")[2]).encode()

    def _store(self, room: str, client: str, ref: str, text: str, fault: str) -> int:
        if fault == "lose":
            return 10_000 + len(self.rows)
        known = [row.identifier for row in self.rows if (row.client, row.ref) == (client, ref)]
        if known and fault != "duplicate":
            return known[0]
        for _ in range(2 if fault == "duplicate" else 1):
            self.rows.append(Row(len(self.rows) + 1, room, client, ref, text))
        return len(self.rows)

    def _greet(self, connection: ServerConnection, request: Request) -> WebSocketResponse | None:
        fault = self.handshake_fault()
        if fault:
            self.done[fault] += 1
        if fault == "refuse":
            return connection.respond(HTTPStatus.BAD_GATEWAY, "no")
        if fault == "abort":
            connection.transport.abort()
        return None

    async def _chat(self, connection: ServerConnection) -> None:
        assert connection.request
        url = urlsplit(connection.request.path)
        room = url.path.split("/")[3]
        if room:
            past = [{"id": row.identifier} for row in self.rows if row.room == room]
            await connection.send(json.dumps({"type": "history", "messages": past}))
            self._rooms.setdefault(room, set()).add(connection)
        async for frame in connection:
            said = json.loads(frame)
            if said["type"] == "ping":
                await connection.send(json.dumps({"type": "pong", "generation": GENERATION}))
                continue
            fault = self.chat_fault()
            if fault:
                self.done[fault] += 1
            client = parse_qs(url.query)["client"][0]
            if fault == "unavailable":
                await connection.send(json.dumps({"type": "error", "code": fault, "ref": said["ref"]}))
                continue
            if fault == "dead":
                # As a host behind a network that was cut: open, and without a word.
                self._rooms[room].discard(connection)
                await connection.wait_closed()
                break
            before = len(self.rows)
            identifier = self._store(room, client, said["ref"], said["text"], fault)
            if len(self.rows) > before:
                message = json.dumps({"type": "message", "id": identifier})
                for other in self._rooms[room]:
                    if fault != "silence" or other is connection:
                        await other.send(message)
            if fault == "1012":
                break
            if fault == "1006":
                connection.transport.abort()
                break
            if fault != "no ack":
                await connection.send(json.dumps({"type": "ack", "ref": said["ref"], "id": identifier}))
        self._rooms.get(room, set()).discard(connection)
        await connection.close(1012)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "QUIET_SECONDS", 0.1)
    monkeypatch.setattr(load, "SETTLE_SECONDS", 2.0)
    monkeypatch.setattr(load, "RESEND_SECONDS", 0.02)


def run(rates: Rates, prepare: Callable[[Faulty], None], seconds: float = 0.4) -> tuple[Faulty, Load]:
    """Run the load against a site whose faults `prepare` sets; the accounts must agree in any case."""

    async def both() -> tuple[Faulty, Load]:
        async with Faulty() as site:
            prepare(site)
            running = Load(site.target, rates)
            await running.start()
            await asyncio.sleep(seconds)
            (await running.stop()).check()
            return site, running

    return asyncio.run(both())


def http_counts(ledger: Ledger, outcome: str) -> int:
    return ledger.total(outcome, HANDSHAKE, SOCKET, MESSAGE)


def test_a_faultless_site() -> None:
    site, running = run(HTTP, lambda site: None)
    ledger = running.ledger
    assert http_counts(ledger, "ok") == site.requests == sum(ledger.begun.values()) - ledger.begun[MESSAGE]
    assert {kind for kind, _ in ledger.ended} == {"kept", "fresh", "slow", "post", "static", "page", MESSAGE}
    assert ledger.count(MESSAGE, "acknowledged") == len(site.rows) > 5
    assert compare(ledger, running.chatters, running.run, site.rows).once == len(site.rows)
    assert ledger.problems == []
    assert {answer.generation for answer in ledger.answers} == {GENERATION}


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [("drop", "failed"), ("half", "failed"), ("more", "failed"), ("500", "wrong")],
)
def test_each_lost_or_wrong_answer_is_counted(fault: str, outcome: str) -> None:
    site, running = run(HTTP, lambda site: setattr(site, "http_fault", every(5, fault)))
    ledger = running.ledger
    assert http_counts(ledger, outcome) == site.done[fault] > 5
    assert http_counts(ledger, "ok") == site.requests - site.done[fault]
    assert http_counts(ledger, "failed") + http_counts(ledger, "wrong") == site.done[fault]
    # Not one request was sent again, whatever became of it.
    assert site.requests == sum(ledger.begun.values()) - ledger.begun[MESSAGE]


@pytest.mark.parametrize("fault", ["wrong", "mixed"])
def test_a_whole_answer_with_the_wrong_content_is_wrong(fault: str) -> None:
    site, running = run(replace(QUIET, kept=(1, 0.01)), lambda site: setattr(site, "http_fault", every(4, fault)))
    # A page is no part of a generation that could be mixed.
    affected = site.done[fault] if fault == "wrong" else http_counts(running.ledger, "wrong")
    assert http_counts(running.ledger, "wrong") == affected > 2
    assert http_counts(running.ledger, "failed") == 0


@pytest.mark.parametrize("fault", ["chunked", "close idle"])
def test_what_is_no_fault_is_none(fault: str) -> None:
    site, running = run(HTTP, lambda site: setattr(site, "http_fault", every(3, fault)))
    ledger = running.ledger
    assert site.done[fault] > 5
    assert http_counts(ledger, "ok") == site.requests
    assert (ledger.notes["kept connections ended while idle"] > 0) == (fault == "close idle")


def test_refused_connections_are_failed_requests() -> None:
    async def both() -> Ledger:
        async with Faulty() as site:
            running = Load(site.target, replace(QUIET, fresh=(1, 0.01)))
            await running.start()
            await asyncio.sleep(0.2)
            site.refuse_connections()
            await asyncio.sleep(0.2)
            ledger = await running.stop()
            ledger.check()
            assert ledger.count("fresh", "ok") == site.requests - 1
            return ledger

    ledger = asyncio.run(both())
    assert ledger.count("fresh", "failed") > 5
    assert "no connection" in ledger.problems[0]


def test_a_faultless_chat() -> None:
    site, running = run(CHAT, lambda site: None)
    ledger = running.ledger
    stored = compare(ledger, running.chatters, running.run, site.rows)
    assert stored.once == len(site.rows) == ledger.begun[MESSAGE] > 20
    assert (stored.lost, stored.duplicated, stored.altered, stored.unseen, stored.resent) == (0, 0, 0, 0, 0)
    assert set(ledger.ended) >= {(HANDSHAKE, "ok"), (SOCKET, "1000"), (MESSAGE, "acknowledged")}
    assert ledger.count(SOCKET, "1000") == ledger.begun[HANDSHAKE]
    # Three in each room.
    assert ledger.notes["broadcasts"] == 3 * len(site.rows)
    assert ledger.notes["visits answered"] > 5


@pytest.mark.parametrize(("fault", "outcome"), [("refuse", "refused"), ("abort", "failed")])
def test_each_handshake_without_a_socket_is_counted(fault: str, outcome: str) -> None:
    site, running = run(CHAT, lambda site: setattr(site, "handshake_fault", every(4, fault)))
    assert running.ledger.count(HANDSHAKE, outcome) == site.done[fault] > 3
    assert running.ledger.begun[HANDSHAKE] == running.ledger.begun[SOCKET] + site.done[fault]


@pytest.mark.parametrize("code", ["1012", "1006"])
def test_a_message_whose_socket_ended_is_sent_again_and_stored_once(code: str) -> None:
    site, running = run(CHAT, lambda site: setattr(site, "chat_fault", every(5, code)))
    stored = compare(running.ledger, running.chatters, running.run, site.rows)
    assert running.ledger.count(SOCKET, code) == site.done[code] > 3
    assert stored.resent > 0
    # Each message that found its socket closed costs another sending.
    assert sum(message.sent - 1 for message in running.ledger.messages) >= site.done[code]
    assert stored.once == running.ledger.begun[MESSAGE] == len(site.rows)


def test_a_message_that_was_refused_for_a_while_is_sent_again_over_the_same_socket() -> None:
    site, running = run(CHAT, lambda site: setattr(site, "chat_fault", every(5, "unavailable")))
    ledger = running.ledger
    stored = compare(ledger, running.chatters, running.run, site.rows)
    assert ledger.notes["errors unavailable"] == site.done["unavailable"] > 3
    assert sum(message.sent - 1 for message in ledger.messages) == site.done["unavailable"]
    assert stored.once == ledger.begun[MESSAGE] == len(site.rows)
    assert {outcome for kind, outcome in ledger.ended if kind == SOCKET} == {"1000"}


def test_a_socket_over_which_nothing_comes_is_given_up_and_its_message_sent_again() -> None:
    rates = replace(CHAT, answer_seconds=0.3)
    site, running = run(rates, lambda site: setattr(site, "chat_fault", every(15, "dead")), 0.8)
    ledger = running.ledger
    stored = compare(ledger, running.chatters, running.run, site.rows)
    # On a slow machine others may look dead, too.
    assert ledger.notes["sockets given up for dead"] == ledger.count(SOCKET, "1006") >= site.done["dead"] > 2
    assert stored.once == ledger.begun[MESSAGE] == len(site.rows)
    # Whose they were: each came back.
    last = {socket.client: socket.code for socket in ledger.sockets if socket.client}
    assert last == {chatter.client: 1000 for chatter in running.chatters}


@pytest.mark.parametrize(
    ("fault", "count"), [("lose", "lost"), ("duplicate", "duplicated"), ("no ack", "unacknowledged_but_stored")]
)
def test_each_lost_and_duplicated_message_is_counted(fault: str, count: str) -> None:
    site, running = run(CHAT, lambda site: setattr(site, "chat_fault", every(7, fault)))
    stored = compare(running.ledger, running.chatters, running.run, site.rows)
    assert getattr(stored, count) == site.done[fault] > 2
    assert stored.once == running.ledger.begun[MESSAGE] - site.done[fault]
    assert len([line for line in stored.details if not line.startswith("unseen")]) == site.done[fault]


def test_a_broadcast_that_did_not_come_is_counted() -> None:
    site, running = run(CHAT, lambda site: setattr(site, "chat_fault", every(6, "silence")))
    stored = compare(running.ledger, running.chatters, running.run, site.rows)
    # The other two of the room missed it; a message at the very end has no later one that shows it.
    assert 0 < 2 * site.done["silence"] - stored.unseen <= 8 or stored.unseen == 2 * site.done["silence"]
    assert stored.once == len(site.rows)


def test_posts_that_are_lost_or_stored_twice_are_counted() -> None:
    rates = replace(QUIET, post=(2, 0.01))
    site, running = run(rates, lambda site: setattr(site, "http_fault", every(5, "duplicate")))
    stored = compare(running.ledger, running.chatters, running.run, site.rows)
    assert stored.duplicated == site.done["duplicate"] > 3
    site, running = run(rates, lambda site: setattr(site, "http_fault", every(5, "drop")))
    stored = compare(running.ledger, running.chatters, running.run, site.rows)
    assert stored.unacknowledged == site.done["drop"] > 3
    assert stored.unacknowledged == running.ledger.count(MESSAGE, "unacknowledged")


def test_a_load_in_the_background() -> None:
    def work(target: Target) -> Ledger:
        with Background(Load(target, CHAT)) as running:
            time.sleep(0.2)
        return running.ledger

    async def both() -> Ledger:
        async with Faulty() as site:
            return await asyncio.to_thread(work, site.target)

    ledger = asyncio.run(both())
    ledger.check()
    assert ledger.count(MESSAGE, "acknowledged") > 5


# ---- the accounts by themselves ---------------------------------------------------------------------------------------


def test_an_attempt_ends_once() -> None:
    ledger = Ledger()
    number = ledger.begin("kept")
    with pytest.raises(AssertionError, match="no outcome"):
        ledger.check()
    ledger.end(number, "ok")
    ledger.check()
    with pytest.raises(KeyError):
        ledger.end(number, "failed")


def test_a_count_that_does_not_agree_is_found() -> None:
    ledger = Ledger()
    ledger.end(ledger.begin("kept"), "ok")
    ledger.ended["kept", "ok"] += 1
    with pytest.raises(AssertionError, match="begun"):
        ledger.check()
    handshake_only = Ledger()
    handshake_only.end(handshake_only.begin(HANDSHAKE), "ok")
    with pytest.raises(AssertionError):
        handshake_only.check()


TIMELINE = Timeline([Switch(0, "a"), Switch(100, "b"), Switch(110, "a"), Switch(200, "c")])


@pytest.mark.parametrize(
    ("generation", "at", "since"),
    [
        ("a", 50, 0),
        ("a", 103, 3),
        ("a", 150, 0),
        ("a", 205, 5),
        ("b", 99, None),
        ("b", 105, 0),
        ("b", 120, 10),
        ("c", 300, 0),
    ],
)
def test_since_when_a_generation_no_longer_serves(generation: str, at: float, since: float | None) -> None:
    assert TIMELINE.since(generation, at) == since


def test_answers_of_old_code() -> None:
    ledger = Ledger()
    ledger.answers = [
        Answered("kept", "a", 99, 101.5),
        Answered("slow", "b", 112, 114),
        Answered("kept", "c", 198, 199),
        Answered("kept", "c", 250, 251),
    ]
    found = old_answers(ledger, TIMELINE)
    assert (found.count, found.latest_sent, found.latest_done, found.early) == (2, 2, 4, 1)


def test_how_sockets_ended_after_a_switch() -> None:
    ledger = Ledger()
    ledger.sockets = [Socket("chat", 10, "b", 110 + moment, 1012) for moment in (2, 3, 4, 5, 6)]
    ledger.sockets += [Socket("chat", 10, "b", 115, 1006), Socket("chat", 10, "b", 190, 1000)]
    # Not of the old generation, or over before, or come after.
    ledger.sockets += [
        Socket("chat", 10, "a", 115, 1012),
        Socket("chat", 10, "b", 109, 1000),
        Socket("chat", 111, "b", 115, 1000),
    ]
    ledger.sockets += [Socket("visit", 10, "b", 115, 1012)]
    first, second, third = drains(ledger, TIMELINE)
    # The drain of a is called off by the switch back.
    assert (first.generation, first.closed, first.stayed) == ("a", {}, 1)
    assert (second.generation, second.closed) == ("b", {1012: [2, 3, 4, 5, 6], 1006: [5], 1000: [80]})
    assert (second.stayed, second.window, second.largest_fifth) == (0, (2, 6), 0.2)
    assert (third.generation, third.closed) == ("a", {})


def test_what_the_database_has() -> None:
    def message(number: int, acknowledged_as: int | None) -> Message:
        return Message(number, "r", "c", f"ref{number}", f"run {number}", 1, acknowledged_as)

    ledger = Ledger()
    ledger.messages = [
        message(1, 11),
        message(2, 12),
        message(3, 13),
        message(4, None),
        message(5, None),
        message(6, 16),
    ]
    rows = [
        Row(identifier, "r", "c", f"ref{number}", f"run {number}")
        for identifier, number in [(11, 1), (13, 3), (14, 3), (15, 4)]
    ]
    rows += [
        Row(17, "other room", "c", "ref6", "run 6"),
        Row(18, "r", "c", "ref9", "run 9"),
        Row(19, "r", "x", "y", "hello you"),
    ]
    chatter = Chatter("c", "r", seen={11, 14, 18})
    stored = compare(ledger, [chatter], "run", rows)
    assert (stored.once, stored.lost, stored.duplicated, stored.unacknowledged_but_stored) == (1, 1, 1, 1)
    assert (stored.unacknowledged, stored.altered, stored.unknown, stored.unseen) == (1, 1, 1, 2)
