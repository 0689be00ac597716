"""Many clients of a site from many addresses at once, for a test host to run against itself (standard library only).

    crowd.py ask  --first A --sources N --each M PATH    every source asks M times at once; prints status, seconds and Retry-After of each
    crowd.py open --first A --sources N --each M PATH    every source opens M WebSockets at once; prints how many had which answer,
                                                         and holds them until its standard input ends
    crowd.py wait …                                      as open; who gets 429 comes back when told to, until it is in
    crowd.py flood --seconds S …                         as open, but one after the other over S seconds, however they are answered;
                                                         then gives up those without an answer and closes the others

The sources are 127.0.1.A and those after it: a client of Nginx's each, and none of them exempt from anything.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time
from collections import Counter

TARGET = ("127.0.0.1", 80)
DOMAIN = "chat.test"
MOST_SECONDS = 90
# First bytes of frames (RFC 6455, 5.2): the last fragment, and its kind.
PING, PONG = 0x89, 0x8A
HANDSHAKE = (
    f"Origin: http://{DOMAIN}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def begin(source: int, path: str, headers: str) -> tuple[str, float, Connection]:
    """Send one request; returns the answer's head, the seconds that it took, and the open connection."""
    start = time.monotonic()
    reader, writer = await asyncio.open_connection(*TARGET, local_addr=(f"127.0.1.{source}", 0))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {DOMAIN}\r\n{headers}\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    return head, time.monotonic() - start, (reader, writer)


def status(head: str) -> int:
    """Return the status of an answer."""
    return int(head.split(" ", 2)[1])


def retry_after(head: str) -> int:
    """Return the seconds after which an answer asks its client to come again, 0 when it doesn't."""
    found = re.search(r"^Retry-After: ([0-9]+)\r$", head, re.M)
    return int(found[1]) if found else 0


async def ask(arguments: argparse.Namespace) -> None:
    """Ask, all at once, and tell how each was answered."""

    async def one(source: int) -> tuple[int, float, int]:
        head, seconds, (_, writer) = await begin(source, arguments.path, "Connection: close\r\n")
        writer.close()
        return status(head), seconds, retry_after(head)

    print("started", flush=True)
    work = [
        one(source)
        for source in range(arguments.first, arguments.first + arguments.sources)
        for _ in range(arguments.each)
    ]
    print(json.dumps(await asyncio.gather(*work)), flush=True)


async def answer_pings(connection: Connection) -> None:
    """Send each ping's bytes back, as a browser does, until the connection ends."""
    reader, writer = connection
    try:
        while True:
            kind, length = await reader.readexactly(2)
            payload = await reader.readexactly(length)
            if kind == PING:
                # Masked, as a client's frames must be, by a mask that changes nothing.
                writer.write(bytes([PONG, 0x80 | length]) + bytes(4) + payload)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def open_and_hold(arguments: argparse.Namespace) -> None:
    """Open WebSockets, tell how each handshake was answered, and keep those that are open."""
    held = []

    async def one(source: int) -> int:
        head, _, connection = await begin(source, arguments.path, HANDSHAKE)
        while arguments.mode == "wait" and status(head) == 429:
            connection[1].close()
            await asyncio.sleep(retry_after(head))
            head, _, connection = await begin(source, arguments.path, HANDSHAKE)
        if status(head) == 101:
            held.append(asyncio.create_task(answer_pings(connection)))
        else:
            connection[1].close()
        return status(head)

    print("started", flush=True)
    work = [
        one(source)
        for source in range(arguments.first, arguments.first + arguments.sources)
        for _ in range(arguments.each)
    ]
    print(json.dumps(Counter(await asyncio.gather(*work))), flush=True)
    await asyncio.to_thread(sys.stdin.read)


async def flood(arguments: argparse.Namespace) -> None:
    """Open WebSockets at an even rate, tell how many had which answer and how long it took, and leave."""
    answers: Counter[str] = Counter()
    connections = []

    async def one(source: int) -> None:
        head, _, connection = await begin(source, arguments.path, HANDSHAKE)
        answers[str(status(head))] += 1
        if status(head) == 101:
            connections.append(connection)
        else:
            connection[1].close()

    print("started", flush=True)
    start = time.monotonic()
    tasks = []
    for number in range(arguments.each):
        await asyncio.sleep(start + number * arguments.seconds / arguments.each - time.monotonic())
        tasks += [
            asyncio.create_task(one(source)) for source in range(arguments.first, arguments.first + arguments.sources)
        ]
    seconds = time.monotonic() - start
    for task in tasks:
        task.cancel()
    failed = [result for result in await asyncio.gather(*tasks, return_exceptions=True) if isinstance(result, OSError)]
    print(json.dumps({"answers": answers, "seconds": seconds, "failed": len(failed)}), flush=True)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=["ask", "open", "wait", "flood"])
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--sources", type=int, required=True)
    parser.add_argument("--each", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("path")
    arguments = parser.parse_args()
    work = {"ask": ask, "flood": flood}.get(arguments.mode, open_and_hold)
    asyncio.run(asyncio.wait_for(work(arguments), MOST_SECONDS))


if __name__ == "__main__":
    main()
