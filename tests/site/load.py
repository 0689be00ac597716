"""A constant load on a running chat site that counts every request, handshake, socket and message.

`Load` runs in an event loop; `Background` runs one in a thread, for tests that meanwhile call commands. What it asks:

- `kept`: GET on kept connections; `fresh`: GET on a new connection each; `slow`: GET of a view that takes seconds
- `post`: chat messages by POST, each with a `ref`
- `static`: hashed files of every page that was ever seen, so after a switch those of old pages
- `handshake`: visits, which open a WebSocket, ask one question and leave, and the chatters' (re)connections
- chatters: people in rooms who send messages, and who after any end of their socket come back, after a random pause, and send
  again what was not acknowledged, with the same `ref`; also what was refused for a while, some seconds later

No HTTP request is ever repeated, nor is its connection's loss forgiven (load_http.py says when a request was sent). An
answer is `ok` when its status and content are right, `wrong` when it is whole but not right, else `failed`. A handshake is `ok`
at 101, `refused` with another answer or when nobody listens, else `failed`. A message is `acknowledged`, or `unacknowledged` when there was
no acknowledgement until the end. The load is bounded: never more than one request at a time for each client in `Rates`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import random
import re
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import urlencode

from load_http import Connection, LostError, Response
from load_ledger import HANDSHAKE, MESSAGE, SOCKET, Answered, Ledger, Message, Socket
from websockets import Origin
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

Argument = TypeVar("Argument")

REQUEST_SECONDS = 30.0
HANDSHAKE_SECONDS = 30.0
# Errors after which the sample app's page sends a message again, and the seconds that it waits, up to twice as long.
PASSING = ("too_fast", "unavailable")
RESEND_SECONDS = 2.0
# How long acknowledgements may take once nothing new is sent, and the silence that ends the listening.
SETTLE_SECONDS = 30.0
QUIET_SECONDS = 1.0

# A dropped socket says so by its code; the library would say it again for each.
logging.getLogger("websockets.client").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Rates:
    """How much of each: clients at work at once, and the seconds from one turn of such a client to its next."""

    kept: tuple[int, float] = (2, 0.1)
    fresh: tuple[int, float] = (1, 0.2)
    slow: tuple[int, float] = (4, 2.0)
    post: tuple[int, float] = (1, 0.2)
    static: tuple[int, float] = (1, 0.1)
    visits: tuple[int, float] = (1, 0.2)
    chatters: tuple[int, float] = (200, 8.0)
    rooms: int = 40
    slow_seconds: float = 2.0
    # Up to so many seconds a chatter waits before it comes back.
    pause_seconds: float = 2.0
    # A chatter to whom nothing comes for so many seconds after it asked for something takes its connection for dead; 0: never.
    answer_seconds: float = 0


@dataclass(frozen=True)
class Target:
    """A site: its address, its name, and the port of its WebSockets if that is another."""

    address: str
    domain: str
    port: int = 80
    websocket_port: int | None = None


@dataclass
class Chatter:
    """Somebody in a room, over all of its sockets."""

    client: str
    room: str
    outstanding: dict[str, Message] = field(default_factory=dict)
    # Ids of the messages in the room that it has seen, by history or broadcast.
    seen: set[int] = field(default_factory=set)
    connection: ClientConnection | None = None
    # Runs from what was asked for to what comes next.
    patience: asyncio.TimerHandle | None = None


class Load:
    """All clients. `start` returns once every chatter is in its room; `stop` once everything has its outcome."""

    def __init__(self, target: Target, rates: Rates | None = None) -> None:
        self.target = target
        self.rates = rates or Rates()
        self.run = uuid.uuid4().hex[:8]
        self.ledger = Ledger()
        self.rooms = [f"load-{number}" for number in range(self.rates.rooms)]
        self.chatters: list[Chatter] = []
        # By generation: the version of the code and the environment's mark that it was first seen with.
        self.faces: dict[str, tuple[str, str]] = {}
        # Of every hashed file that a page has named: the digest of its content when it was first read.
        self.files: dict[str, str] = {}
        self._token = ""
        self._asking = True
        self._chatting = True
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin, and wait until each chatter has a socket; raises AssertionError when one gets none."""
        count, _ = self.rates.chatters
        self.chatters = [
            Chatter(f"{self.run}-{number}", self.rooms[number % len(self.rooms)]) for number in range(count)
        ]
        first = await self._read_page("page", f"/rooms/{self.rooms[0]}/")
        assert first, f"no page to begin with: {self.ledger.problems}"
        self._token = first.cookies["csrftoken"]
        self._spawn(self._chat, self.chatters)
        end = time.monotonic() + HANDSHAKE_SECONDS
        while not all(chatter.connection for chatter in self.chatters):
            assert time.monotonic() < end, f"not all chatters are in: {self.ledger.problems}"
            await asyncio.sleep(0.05)
        turns: list[tuple[tuple[int, float], Callable[[float], Coroutine[None, None, None]]]] = [
            (self.rates.kept, self._kept),
            (self.rates.fresh, self._fresh),
            (self.rates.slow, self._slow),
            (self.rates.post, self._post),
            (self.rates.static, self._static),
            (self.rates.visits, self._visit),
        ]
        for (clients, interval), work in turns:
            self._spawn(work, [interval] * clients)

    async def stop(self) -> Ledger:
        """End: no new requests and messages, then all answers and acknowledgements, then no sockets; returns the ledger."""
        self._asking = False
        end = time.monotonic() + SETTLE_SECONDS
        while any(chatter.outstanding for chatter in self.chatters) and time.monotonic() < end:
            await asyncio.sleep(0.05)
        heard, quiet_since = -1, time.monotonic()
        while time.monotonic() - quiet_since < QUIET_SECONDS and time.monotonic() < end:
            if self.ledger.notes["broadcasts"] != heard:
                heard, quiet_since = self.ledger.notes["broadcasts"], time.monotonic()
            await asyncio.sleep(0.05)
        self._chatting = False
        await asyncio.gather(*(chatter.connection.close() for chatter in self.chatters if chatter.connection))
        await asyncio.gather(*self._tasks)
        for chatter in self.chatters:
            for message in chatter.outstanding.values():
                self.ledger.end(message.number, "unacknowledged", f"{message.ref}, sent {message.sent} times")
        return self.ledger

    def _spawn(self, work: Callable[[Argument], Coroutine[None, None, None]], arguments: list[Argument]) -> None:
        self._tasks += [asyncio.create_task(work(argument)) for argument in arguments]

    async def _turns(self, interval: float) -> AsyncIterator[None]:
        """Yield once an interval while the load goes on; a turn that comes late is not made up for."""
        await asyncio.sleep(random.uniform(0, interval))
        while self._asking:
            began = time.monotonic()
            yield
            await asyncio.sleep(max(0.0, interval - (time.monotonic() - began)))

    # ---- HTTP --------------------------------------------------------------------------------------------------

    async def _request(
        self,
        kind: str,
        target: str,
        check: Callable[[Response], str],
        connection: Connection | None = None,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
    ) -> tuple[Response | None, Connection | None]:
        """Ask once, on `connection` if it is still open; return a right answer, and the connection if it stays open.

        `check` returns what is wrong with an answer, or nothing.
        """
        if connection and connection.is_over():
            self.ledger.notes["kept connections ended while idle"] += 1
            connection.close()
            connection = None
        number = self.ledger.begin(kind)
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                connection = connection or await Connection.open(self.target.address, self.target.port)
                response = await connection.request(
                    "POST" if body else "GET", target, {"Host": self.target.domain, **(headers or {})}, body
                )
        except (LostError, TimeoutError) as error:
            self.ledger.end(number, "failed", f"{target}: {error or type(error).__name__}")
            if connection:
                connection.close()
            return None, None
        if not connection.keep:
            connection.close()
        wrong = check(response)
        self.ledger.end(number, "wrong" if wrong else "ok", f"{target}: {wrong}" if wrong else "")
        return None if wrong else response, connection if connection.keep else None

    async def _who(self, kind: str, seconds: float = 0, connection: Connection | None = None) -> Connection | None:
        """Ask who answers."""
        token = uuid.uuid4().hex
        sent_at = time.time()

        def check(response: Response) -> str:
            if response.status != 200:
                return f"status {response.status}"
            answer = json.loads(response.body)
            if answer["number"] != token:
                return f"an answer to {answer['number']}"
            self.ledger.answers.append(Answered(kind, answer["generation"], sent_at, time.time()))
            face = (answer["version"], answer["mark"])
            if self.faces.setdefault(answer["generation"], face) != face:
                return f"generation {answer['generation']} with code and mark {face}"
            return ""

        wanted = f"/who?number={token}&seconds={seconds}"
        return (await self._request(kind, wanted, check, connection))[1]

    async def _kept(self, interval: float) -> None:
        connection: Connection | None = None
        turn = 0
        async for _ in self._turns(interval):
            turn += 1
            if turn % 3:
                connection = await self._who("kept", connection=connection)
            else:
                room = random.choice(self.rooms)
                mark = f'data-slug="{room}"'.encode()

                def check(response: Response, mark: bytes = mark) -> str:
                    return "" if response.status == 200 and mark in response.body else f"status {response.status}"

                _, connection = await self._request("kept", f"/rooms/{room}/", check, connection)
        if connection:
            connection.close()

    async def _fresh(self, interval: float) -> None:
        async for _ in self._turns(interval):
            connection = await self._who("fresh")
            if connection:
                connection.close()

    async def _slow(self, interval: float) -> None:
        async for _ in self._turns(interval):
            connection = await self._who("slow", self.rates.slow_seconds)
            if connection:
                connection.close()

    async def _post(self, interval: float) -> None:
        connection: Connection | None = None
        turn = 0
        poster = f"{self.run}-post-{uuid.uuid4().hex[:8]}"
        headers = {
            "Accept": "application/json",
            "Content-Type": "application/x-www-form-urlencoded",
            "Cookie": f"csrftoken={self._token}",
            "X-CSRFToken": self._token,
        }
        async for _ in self._turns(interval):
            turn += 1
            message = self._new_message(random.choice(self.rooms), poster, turn, padding=500)

            def check(response: Response, message: Message = message) -> str:
                if response.status != 201:
                    return f"status {response.status}: {response.body[:200]!r}"
                answer = json.loads(response.body)
                if answer["text"] != message.text:
                    return f"another text: {answer['text'][:80]}"
                message.acknowledged_as = answer["id"]
                return ""

            message.sent += 1
            target = f"/rooms/{message.room}/messages?client={poster}&name=Poster"
            body = urlencode({"text": message.text, "ref": message.ref}).encode()
            _, connection = await self._request("post", target, check, connection, body, headers)
            self.ledger.end(message.number, "unacknowledged" if message.acknowledged_as is None else "acknowledged")
        if connection:
            connection.close()

    async def _read_page(self, kind: str, target: str) -> Response | None:
        """Read a page and remember the hashed files that it names."""

        def check(response: Response) -> str:
            return "" if response.status == 200 and b"</html>" in response.body else f"status {response.status}"

        page, connection = await self._request(kind, target, check)
        if connection:
            connection.close()
        if page:
            for path in re.findall(r"/static/[^\"]+\.[0-9a-f]{12}\.[a-z]+", page.body.decode()):
                self.files.setdefault(path, "")
        return page

    async def _static(self, interval: float) -> None:
        connection: Connection | None = None
        page_at = 0.0
        async for _ in self._turns(interval):
            if time.monotonic() - page_at > 1:
                page_at = time.monotonic()
                await self._read_page("page", f"/rooms/{self.rooms[0]}/")
            path = random.choice(list(self.files))

            def check(response: Response, path: str = path) -> str:
                if response.status != 200:
                    return f"status {response.status}"
                digest = hashlib.sha256(response.body).hexdigest()
                self.files[path] = self.files[path] or digest
                return "" if self.files[path] == digest else "another content than before"

            _, connection = await self._request("static", path, check, connection)
        if connection:
            connection.close()

    # ---- WebSocket ---------------------------------------------------------------------------------------------

    async def _handshake(self, path: str) -> ClientConnection | None:
        number = self.ledger.begin(HANDSHAKE)
        try:
            connection = await connect(
                f"ws://{self.target.domain}{path}",
                origin=Origin(f"http://{self.target.domain}"),
                compression=None,
                proxy=None,
                ping_interval=None,
                open_timeout=self.rates.answer_seconds or HANDSHAKE_SECONDS,
                # A client that stops reading when it is behind would see a close frame too late.
                max_queue=None,
                host=self.target.address,
                port=self.target.websocket_port or self.target.port,
            )
        except (InvalidStatus, ConnectionRefusedError) as error:
            self.ledger.end(number, "refused", str(error))
            return None
        except (InvalidHandshake, OSError, TimeoutError, EOFError) as error:
            self.ledger.end(number, "failed", f"{type(error).__name__}: {error} {error.__cause__ or ''}")
            return None
        self.ledger.end(number, "ok")
        return connection

    def _opened(self, kind: str, client: str = "") -> tuple[int, Socket]:
        socket = Socket(kind, time.time(), client=client)
        self.ledger.sockets.append(socket)
        return self.ledger.begin(SOCKET), socket

    def _closed(self, number: int, socket: Socket, connection: ClientConnection, outstanding: int) -> None:
        socket.closed_at = time.time()
        # What the server's frame said; without one the library says 1006.
        socket.code = connection.close_code
        is_usual = socket.code in (1000, 1012)
        cause = connection.close_exc.__cause__ if connection.state.name == "CLOSED" else None
        about = f"{socket.kind} of {socket.generation}, {outstanding} messages under way, {cause!r}"
        self.ledger.end(number, str(socket.code), "" if is_usual else about)

    async def _visit(self, interval: float) -> None:
        async for _ in self._turns(interval):
            connection = await self._handshake("/ws/health/")
            if connection is None:
                continue
            number, socket = self._opened("visit")
            try:
                await connection.send('{"type": "ping"}')
                async with asyncio.timeout(REQUEST_SECONDS):
                    socket.generation = json.loads(await connection.recv())["generation"]
                self.ledger.notes["visits answered"] += 1
            except ConnectionClosed:
                self.ledger.notes["visits ended by the server"] += 1
            except TimeoutError:
                self.ledger.notes["visits unanswered"] += 1
                self.ledger.problem(f"visit {number}: no answer in {REQUEST_SECONDS:.0f} s")
            await connection.close()
            self._closed(number, socket, connection, 0)

    async def _chat(self, chatter: Chatter) -> None:
        path = f"/ws/rooms/{chatter.room}/?client={chatter.client}&name={chatter.client}"
        turn = 0

        async def write(connection: ClientConnection) -> None:
            nonlocal turn
            await connection.send('{"type": "ping"}')
            for message in list(chatter.outstanding.values()):
                await self._send(chatter, connection, message)
            async for _ in self._turns(self.rates.chatters[1]):
                turn += 1
                message = self._new_message(chatter.room, chatter.client, turn)
                chatter.outstanding[message.ref] = message
                await self._send(chatter, connection, message)

        while self._chatting:
            connection = await self._handshake(path)
            if connection:
                number, socket = self._opened("chat", chatter.client)
                chatter.connection = connection
                self._expect(chatter, connection)
                writer = asyncio.create_task(write(connection))
                told: set[int] = set()
                if not self._chatting:
                    await connection.close()
                with suppress(ConnectionClosed):  # its code is counted below
                    async for frame in connection:
                        self._answered(chatter)
                        self._hear(chatter, socket, json.loads(frame), told)
                        if chatter.outstanding:
                            self._expect(chatter, connection)
                self._answered(chatter)
                writer.cancel()
                with suppress(asyncio.CancelledError, ConnectionClosed):
                    await writer
                chatter.connection = None
                self._closed(number, socket, connection, len(chatter.outstanding))
            if self._chatting:
                await asyncio.sleep(random.uniform(0, self.rates.pause_seconds))

    async def _send(self, chatter: Chatter, connection: ClientConnection, message: Message) -> None:
        message.sent += 1
        await connection.send(json.dumps({"type": "message", "ref": message.ref, "text": message.text}))
        self._expect(chatter, connection)

    async def _send_again(self, chatter: Chatter, connection: ClientConnection | None, message: Message) -> None:
        """Send what was refused for a while, unless it went over another connection meanwhile."""
        await asyncio.sleep(RESEND_SECONDS * random.uniform(1, 2))
        if connection and chatter.connection is connection and message.ref in chatter.outstanding:
            with suppress(ConnectionClosed):  # it is sent over the next one
                await self._send(chatter, connection, message)

    def _expect(self, chatter: Chatter, connection: ClientConnection) -> None:
        if self.rates.answer_seconds and chatter.patience is None:
            loop = asyncio.get_running_loop()
            chatter.patience = loop.call_later(self.rates.answer_seconds, self._give_up, connection)

    def _answered(self, chatter: Chatter) -> None:
        if chatter.patience:
            chatter.patience.cancel()
            chatter.patience = None

    def _give_up(self, connection: ClientConnection) -> None:
        self.ledger.notes["sockets given up for dead"] += 1
        connection.transport.abort()

    def _hear(self, chatter: Chatter, socket: Socket, said: dict[str, object], told: set[int]) -> None:
        """Take in one frame; `told` holds the ids of the messages that this socket has had."""
        kind = said["type"]
        if kind == "pong":
            socket.generation = str(said["generation"])
        elif kind == "ack":
            message = chatter.outstanding.pop(str(said["ref"]), None)
            if message is None:
                self.ledger.notes["acknowledgements of what was acknowledged"] += 1
            else:
                message.acknowledged_as = int(str(said["id"]))
                self.ledger.end(message.number, "acknowledged")
        elif kind == "history":
            past = said["messages"]
            assert isinstance(past, list)
            told.update(message["id"] for message in past)
            chatter.seen.update(told)
        elif kind == "message":
            self.ledger.notes["broadcasts"] += 1
            identifier = int(str(said["id"]))
            if identifier in told:
                self.ledger.notes["broadcasts told twice"] += 1
            told.add(identifier)
            chatter.seen.add(identifier)
        elif kind == "error":
            self.ledger.notes[f"errors {said['code']}"] += 1
            self.ledger.problem(f"{chatter.client}: {said}")
            refused = chatter.outstanding.get(str(said.get("ref")))
            if said["code"] in PASSING and refused:
                self._tasks.append(asyncio.create_task(self._send_again(chatter, chatter.connection, refused)))

    def _new_message(self, room: str, client: str, turn: int, padding: int = 0) -> Message:
        number = self.ledger.begin(MESSAGE)
        message = Message(number, room, client, f"{client}-{turn}", f"{self.run} {number} {'x' * padding}".strip())
        self.ledger.messages.append(message)
        return message


class Background:
    """A load in a thread with an event loop of its own, as a context; after it `ledger` has everything."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="load", daemon=True)

    def __enter__(self) -> Load:
        self._thread.start()
        self._wait(self.load.start())
        return self.load

    def __exit__(self, *_: object) -> None:
        self._wait(self.load.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait(self, work: Coroutine[None, None, object]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()


def by_kind(ledger: Ledger) -> dict[str, dict[str, int]]:
    """Return the counts of each outcome by kind, for the print."""
    counts: dict[str, dict[str, int]] = defaultdict(dict)
    for (kind, outcome), count in sorted(ledger.ended.items()):
        counts[kind][outcome] = count
    return counts
