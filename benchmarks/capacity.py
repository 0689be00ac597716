"""What one request, one message and one open WebSocket cost: seconds of CPU and memory, of each service on each host.

    python benchmarks/capacity.py EDGE DOMAIN [HOST]…

EDGE is the container of the host that people ask, DOMAIN the site's name there (plain HTTP), HOST each other container with a part of the
site: `quintet-demo localhost`, or the hosts of the scenario cluster. To be run beside a site of the sample app that nobody else asks, after
a deploy and a reload of Nginx: processes that have had sockets before keep their memory for the next ones.

It counts seconds of CPU, not rates, so that other work on the machine matters little: requests per core are their inverse. Sends at most
REQUESTS requests of each kind, MESSAGES messages, and holds SOCKETS WebSockets for IDLE_SECONDS.
"""

from __future__ import annotations

import collections
import json
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/site"))

from hosts import Host, Site, receive  # noqa: E402  (found by the line above)

REQUESTS = 400
MESSAGES = 400
SOCKETS = 500
IDLE_SECONDS = 60
# What a client may ask without being held up (nginx_site_limit_requests), and less.
PER_SECOND = 30

# Prints seconds of CPU and memory (PSS, bytes) of each service's processes, by the name of its kind.
USAGE = r"""
import collections, json, os, pathlib, re
usage = collections.defaultdict(lambda: [0.0, 0])
for process in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        unit = re.search(r"([^/]+)\.service$", (process / "cgroup").read_text(), re.MULTILINE)
        ticks = (process / "stat").read_text().rpartition(")")[2].split()
        size = re.search(r"^Pss: +(\d+)", (process / "smaps_rollup").read_text(), re.MULTILINE)
    except OSError:
        continue  # it has ended
    if unit and size:
        kind = re.split(r"[-@.]", unit[1].removeprefix("quintet-"))[0]
        # Its own, and of its children that have ended, such as PostgreSQL's for connections.
        usage[kind][0] += sum(map(int, ticks[11:15])) / os.sysconf("SC_CLK_TCK")
        usage[kind][1] += int(size[1]) * 1024
print(json.dumps(usage))
"""
SERVICES = ("nginx", "gunicorn", "daphne", "postgresql", "pgbouncer", "redis")


@dataclass(frozen=True)
class Usage:
    """What a kind of service has used so far on one host: seconds of CPU, bytes of memory."""

    seconds: float
    memory: int


def usage(hosts: list[Host]) -> dict[tuple[str, str], Usage]:
    """Return the usage by host and kind of service."""
    found = {}
    for host in hosts:
        for kind, (seconds, memory) in json.loads(host.run("python3", "-c", USAGE)).items():
            if kind in SERVICES:
                found[host.name, kind] = Usage(seconds, memory)
    return found


def by_kind(
    hosts: list[Host], edge: Host, before: dict[tuple[str, str], Usage], number: int
) -> dict[str, tuple[float, float]]:
    """Return milliseconds of CPU and kilobytes for each of a number of things done since `before`; the edge's Nginx apart from others'."""
    spent: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
    for (name, kind), after in usage(hosts).items():
        was = before.get((name, kind), Usage(0, 0))
        label = "edge's nginx" if kind == "nginx" and name == edge.name else kind
        spent[label][0] += (after.seconds - was.seconds) * 1000 / number
        spent[label][1] += (after.memory - was.memory) / 1000 / number
    return {kind: (one[0], one[1]) for kind, one in spent.items()}


def main() -> None:
    """Entry point."""
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    edge = Host(sys.argv[1])
    site = Site(edge, sys.argv[2])
    hosts = [edge, *(Host(name) for name in sys.argv[3:])]
    page = site.get("/rooms/lobby/").body
    static = next(part for part in page.split('"') if part.startswith("/static/") and part.endswith(".css"))

    def ask(path: str) -> None:
        answer = site.get(path)
        if answer.status != 200:
            sys.exit(f"{path}: {answer.status}, so nothing was measured.")
        time.sleep(1 / PER_SECOND)

    def measure(what: str, number: int, work: Callable[[], None]) -> None:
        work()  # warm
        before = usage(hosts)
        for _ in range(number):
            work()
        spent = by_kind(hosts, edge, before, number)
        total = sum(one[0] for one in spent.values())
        parts = ", ".join(f"{kind} {spent[kind][0]:.2f}" for kind in sorted(spent) if spent[kind][0] >= 0.005)
        print(f"{what:28} {total:6.2f} ms of CPU, {1000 / total:6.0f} per core and second ({parts})", flush=True)

    measure("page with its database", REQUESTS, lambda: ask("/rooms/lobby/"))
    measure("page of health", REQUESTS, lambda: ask("/healthz"))
    measure("static file", REQUESTS, lambda: ask(static))

    with ExitStack() as stack:
        first, second = (stack.enter_context(site.websocket("/ws/rooms/lobby/")) for _ in range(2))
        # From then on they are in the room.
        for connection in (first, second):
            receive(connection, "history")

        def speak() -> None:
            text = uuid.uuid4().hex
            first.send(json.dumps({"type": "message", "ref": uuid.uuid4().hex, "text": text}))
            for connection in (first, second):
                while receive(connection, "message")["text"] != text:
                    pass
            time.sleep(1 / PER_SECOND)

        measure("message, stored, to two", MESSAGES, speak)

    alone = usage(hosts)
    time.sleep(IDLE_SECONDS)
    without = by_kind(hosts, edge, alone, SOCKETS)
    before = usage(hosts)
    with ExitStack() as stack:
        for _ in range(SOCKETS):
            stack.enter_context(site.websocket("/ws/rooms/lobby/"))
            time.sleep(1 / PER_SECOND)
        opened = by_kind(hosts, edge, before, SOCKETS)
        rest = usage(hosts)
        time.sleep(IDLE_SECONDS)
        idle = by_kind(hosts, edge, rest, SOCKETS)
    for kind in sorted(opened):
        print(
            f"WebSocket, {kind:16} {opened[kind][1]:6.1f} kB, {opened[kind][0]:5.2f} ms of CPU to open, "
            f"{(idle[kind][0] - without[kind][0]) / IDLE_SECONDS * 1000:6.1f} µs of CPU a second open"
        )
    for (name, kind), one in sorted(usage(hosts).items()):
        print(f"{name}: {kind} {one.memory / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
