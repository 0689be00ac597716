"""An app that takes all it can get, of memory, of processes, of its disk, beside Nginx, PostgreSQL and another app."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from hosts import Host, Site, full, receive, wait_for

HOSTS = [Host("quintet-intruder-bookworm"), Host("quintet-intruder-trixie")]
PAUSE_SECONDS = 0.1
SLOWEST_SECONDS = 5.0


@dataclass
class Watch:
    """What somebody sees who uses the other app and the database all the while."""

    host: Host
    seen: int = 0
    slowest: float = 0.0
    problems: list[str] = field(default_factory=list)

    def look(self) -> None:
        """Ask for a page that asks the database, and for a static file; keep what was wrong."""
        began = time.monotonic()
        try:
            statuses = [Site(self.host, "chat.test").get(path).status for path in ("/healthz", "/static/chat/chat.css")]
        except (OSError, http.client.HTTPException) as error:
            self.problems.append(repr(error))
        else:
            if statuses != [200, 200]:
                self.problems.append(f"{statuses}")
        self.slowest = max(self.slowest, time.monotonic() - began)
        self.seen += 1


def bystanders(host: Host) -> dict[str, str]:
    """Return the main processes of what must not notice, and how often systemd has started each again."""
    units = host.run("systemctl", "list-units", "--plain", "--no-legend", "--state=active", "--type=service")
    names = [line.split()[0] for line in units.splitlines()]
    wanted = ("nginx.service", "postgresql@", "redis-chat", "gunicorn-chat@", "daphne-chat-")
    shown = {}
    for name in names:
        if name.startswith(wanted):
            shown[name] = host.run("systemctl", "show", "--property=MainPID,NRestarts", name)
    assert len(shown) >= len(wanted)
    return shown


@contextmanager
def watching(host: Host) -> Iterator[Watch]:
    """Look on while something goes wrong; then nobody else may have been hurt."""
    before = bystanders(host)
    watch, stop = Watch(host), threading.Event()

    def look_on() -> None:
        while not stop.wait(PAUSE_SECONDS):
            watch.look()

    thread = threading.Thread(target=look_on)
    with Site(host, "chat.test").websocket("/ws/health/") as connection:
        thread.start()
        try:
            yield watch
        finally:
            stop.set()
            thread.join()
        connection.send('{"type": "ping"}')
        receive(connection, "pong")
    print(f"\n{host.name}: {watch.seen} looks, the slowest {watch.slowest:.2f} s")
    assert watch.problems == []
    assert watch.seen > 0
    assert watch.slowest < SLOWEST_SECONDS
    assert bystanders(host) == before
    assert host.run("psql", "-tAc", "select 1", user="postgres").strip() == "1"


def show(host: Host, unit: str, name: str) -> str:
    """Return a property of a unit."""
    return host.run("systemctl", "show", "--value", f"--property={name}", unit).strip()


def workers(host: Host) -> set[str]:
    """Return the processes of the plain app's Gunicorn workers."""
    master = show(host, f"gunicorn-plain@{host.current('plain')}.service", "MainPID")
    return set(host.run("cat", f"/proc/{master}/task/{master}/children").split())


@pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.name)
class TestRunaway:
    def test_a_view_that_eats_memory(self, host: Host) -> None:
        before = workers(host)
        with watching(host):
            try:
                status = Site(host, "plain.test").get("/intruder/eat").status
            except http.client.HTTPException:
                status = 502
            assert status == 502
            wait_for("the plain app", lambda: Site(host, "plain.test").get("/").status == 200)
        assert not before & workers(host)

    def test_a_worker_that_forks_up_to_its_limit(self, host: Host) -> None:
        unit = f"worker-plain-idle-1@{host.current('plain')}.service"
        file = "/srv/plain/shared/files/fork"
        most = int(show(host, unit, "TasksMax"))
        with watching(host) as watch:
            host.run("runuser", "-u", "plain_user", "--", "touch", file)
            try:
                wait_for("the forks", lambda: host.run("cat", file).strip() != "")
                seen = watch.seen
                assert int(host.run("cat", file)) == most - 1
                assert int(show(host, unit, "TasksCurrent")) == most
                wait_for("some looks more", lambda: watch.seen > seen + 3)
            finally:
                host.run("rm", "--force", file)
            # The worker ends then, with all its children, and is started again.
            wait_for("the end of the forks", lambda: show(host, unit, "TasksCurrent") == "1")

    def test_a_full_disk_in_shared(self, host: Host) -> None:
        write = (
            "import pathlib\nfile = pathlib.Path('/srv/plain/shared/files/x')\n"
            "try:\n    file.write_text('x' * 8192)\nexcept OSError as error:\n    print(error)\n"
            "file.unlink(missing_ok=True)"
        )
        with full(host, "/srv/plain/shared"), watching(host) as watch:
            answer = Site(host, "plain.test").request("POST", "/intruder/run", body=write).json
            assert "No space left on device" in answer["output"]
            # It still answers what needs no disk.
            assert Site(host, "plain.test").get("/").status == 200
            wait_for("some looks", lambda: watch.seen > 3)
        answer = Site(host, "plain.test").request("POST", "/intruder/run", body=write).json
        assert answer == {"output": "", "error": ""}

    def test_each_service_has_its_limits(self, host: Host) -> None:
        (total,) = (
            int(line.split()[1]) * 1024 for line in host.run("cat", "/proc/meminfo").splitlines() if "MemTotal" in line
        )
        shares = {"gunicorn-chat@*": 0.5, "daphne-chat-1@*": 0.25, "worker-plain-idle-1@*": 0.25}
        shares |= {"redis-chat.service": 0.25, "nginx.service": 0.25}
        ranks = {}
        for pattern, share in shares.items():
            listed = host.run(
                "systemctl", "list-units", "--plain", "--no-legend", "--state=active", "--type=service", pattern
            )
            unit = listed.split()[0]
            assert int(show(host, unit, "MemoryMax")) <= total * (share + 0.01), unit
            assert int(show(host, unit, "TasksMax")) <= 512, unit
            ranks[pattern] = int(show(host, unit, "OOMScoreAdjust"))
        ranks["postgresql"] = int(show(host, "postgresql@*-main.service", "OOMScoreAdjust"))
        # The first is the last that the kernel takes.
        assert sorted(ranks, key=lambda name: ranks[name])[:3] == ["postgresql", "redis-chat.service", "nginx.service"]
        assert min(ranks[name] for name in ranks if "@" in name) >= 200
