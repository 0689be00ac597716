"""once.py in processes as on several hosts, with a database that is a directory: its locks go with their process."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "roles/django_app/files/generation/once.py"

# What once.py takes for Django. Files in the directory say how the server is: down, frozen, forgetful, pooled, sqlite.
DJANGO = """
import fcntl, os, socket, time
from pathlib import Path

HERE = Path(os.environ["FAKE_SERVER"])

class Error(Exception):
    pass

class Session:
    autocommit = False

    def __init__(self):
        self.info = type("Info", (), {"backend_pid": os.getpid()})
        self.lock = None
        self.ends = socket.socketpair()

    def fileno(self):
        return self.ends[0].fileno()

    def close(self):
        if self.lock:
            self.lock.close()

    def cursor(self):
        return Cursor(self)

class Cursor:
    def __init__(self, session):
        self.session = session

    def close(self):
        pass

    def execute(self, question, values):
        look()
        self.row = (self.answer(question, values),)

    def fetchone(self):
        return None if self.row == (None,) else self.row

    def answer(self, question, values):
        with (HERE / "asked").open("a") as asked:
            print(question, *values, file=asked)
        if "set_config" in question:
            return values[0]
        if "pg_try_advisory_lock" in question:
            lock = (HERE / "-".join(map(str, values))).open("a+")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            self.session.lock = lock
            (HERE / "holder").write_text(self.session.name)
            return True
        if question == "SELECT pg_backend_pid()":
            return os.getpid() + (HERE / "pooled").exists()
        if "application_name" in question:
            return (HERE / "holder").read_text()
        assert "pid = pg_backend_pid()" in question, question
        return 1 if self.session.lock and not (HERE / "forgetful").exists() else None

def look():
    while (HERE / "frozen").exists():
        time.sleep(0.05)
    if (HERE / "down").exists():
        raise Error("server closed the connection\\nunexpectedly")

class Database:
    Error = Error

    @staticmethod
    def connect(*url, **given):
        look()
        (HERE / "connected").write_text(repr((url, given)))
        session = Session()
        session.name = given["application_name"]
        return session

class connection:
    vendor = "sqlite" if (HERE / "sqlite").exists() else "postgresql"
    Database = Database

    @staticmethod
    def get_connection_params():
        return {"dbname": "shop", "cursor_factory": object, "context": None, "prepare_threshold": None, "connect_timeout": 60}
"""

# The same, faster.
FASTER = """
import runpy, sys
import importlib.util
spec = importlib.util.spec_from_file_location("once", sys.argv.pop(1))
once = importlib.util.module_from_spec(spec)
spec.loader.exec_module(once)
once.RETRY_SECONDS = once.CHECK_SECONDS = 0.1
once.HOLDER_SECONDS, once.LOST_SECONDS, once.STOP_SECONDS = 0.2, 1.0, 0.8
once.CAUTION_SECONDS, once.SETTLE_SECONDS = 2.0, 0.5
once.main()
"""

# Says what befalls it, until it is told to stop; or, told to be stubborn, until it is killed.
WORK = """
import os, signal, sys, time
def say(what):
    with open("work", "a") as log:
        print(what, os.getpid(), time.monotonic(), file=log, flush=True)
def stop(number, frame):
    say(f"signal {number}")
    if "stubborn" not in sys.argv and number != signal.SIGUSR1:
        say("ends")
        sys.exit(3)
for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1):
    signal.signal(number, stop)
say("begins")
while True:
    time.sleep(0.02)
"""


@dataclass
class Hosts:
    """Processes of once.py that share a server and a directory to work in."""

    server: Path
    source: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(
        self, mode: str, *options: str, command: tuple[str, ...] = (), work: str = "worker beat", **environment: str
    ) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", FASTER, str(SCRIPT), mode, "--app", "shop", "--work", work, *options]
        process = subprocess.Popen(
            [*words, "--", *command] if command else words,
            cwd=self.source,
            env={**os.environ, "FAKE_SERVER": str(self.server), **environment},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def work(self, *options: str, how: str = "", **more: str) -> subprocess.Popen[str]:
        return self.start("run", *options, command=(sys.executable, "work.py", how), **more)

    def turn(self, state: str, on: bool = True) -> None:
        (self.server / state).touch() if on else (self.server / state).unlink()

    def log(self) -> list[tuple[str, int, float]]:
        """Return what was done: the word, the process, the time."""
        path = self.source / "work"
        found = [line.rsplit(" ", 2) for line in path.read_text().splitlines()] if path.exists() else []
        return [(what, int(process), float(moment)) for what, process, moment in found]

    def words(self) -> list[str]:
        return [what for what, _, _ in self.log()]


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    source, server = tmp_path / "src", tmp_path / "server"
    (source / "django").mkdir(parents=True)
    server.mkdir()
    (source / "django/__init__.py").touch()
    (source / "django/db.py").write_text(DJANGO)
    (source / "work.py").write_text(WORK)
    found = Hosts(server, source)
    yield found
    for process in found.started:
        process.kill()
        process.wait()
        if process.stderr:
            process.stderr.close()


def until(condition: Callable[[], bool], seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def begun(hosts: Hosts, count: int) -> Callable[[], bool]:
    return lambda: hosts.words().count("begins") == count


def said(process: subprocess.Popen[str]) -> str:
    assert process.stderr
    return process.stderr.read()


def runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# ---- who does it ------------------------------------------------------------------------------------------------------


def test_one_does_it_and_the_next_takes_over_when_that_has_ended(hosts: Hosts) -> None:
    first = hosts.work()
    until(lambda: hosts.words() == ["begins"])
    second = hosts.work()
    until(lambda: (hosts.server / "asked").read_text().count("pg_try") > 5)
    assert hosts.words() == ["begins"]
    first.send_signal(signal.SIGTERM)
    assert first.wait(15) == 3, "the exit code of the command"
    until(lambda: len(hosts.words()) == 4)
    assert hosts.words() == ["begins", "signal 15", "ends", "begins"]
    assert second.poll() is None


def test_other_work_has_another_lock(hosts: Hosts) -> None:
    hosts.work()
    hosts.work(work="worker mail")
    until(lambda: hosts.words() == ["begins", "begins"])


def test_of_several_that_die_and_come_again_never_two_do_it(hosts: Hosts) -> None:
    processes = [hosts.work() for _ in range(3)]
    for number in range(1, 7):
        until(begun(hosts, number))
        worker = hosts.log()[-1][1]
        (holder,) = [one for one in processes if f" {one.pid} " in Path(f"/proc/{worker}/stat").read_text()]
        processes.remove(holder)
        holder.send_signal(signal.SIGTERM)
        processes.append(hosts.work())
    until(begun(hosts, 7))
    assert hosts.words() == ["begins", "signal 15", "ends"] * 6 + ["begins"]


def test_whoever_is_killed_takes_its_work_along(hosts: Hosts) -> None:
    first = hosts.work(how="stubborn")
    until(lambda: hosts.words() == ["begins"])
    first.kill()
    first.wait()
    until(lambda: not runs(hosts.log()[0][1]), seconds=1)


# ---- signals ----------------------------------------------------------------------------------------------------------


def test_signals_reach_the_command(hosts: Hosts) -> None:
    process = hosts.work("--stop-signal", "SIGQUIT")
    until(lambda: hosts.words() == ["begins"])
    process.send_signal(signal.SIGUSR1)
    until(lambda: "signal 10" in hosts.words())
    process.send_signal(signal.SIGQUIT)
    assert process.wait(15) == 3
    assert hosts.words() == ["begins", "signal 10", "signal 3", "ends"]


def test_a_command_that_ends_by_a_signal_makes_this_end_so_too(hosts: Hosts) -> None:
    # systemd takes that for a good end, but not an exit code of 143.
    process = hosts.start("run", command=("sleep", "1000"))
    until(lambda: (hosts.server / "holder").exists())
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(15) == -signal.SIGTERM


@pytest.mark.parametrize("state", ["", "down", "frozen"])
def test_one_that_waits_stops_at_once_and_well(hosts: Hosts, state: str) -> None:
    hosts.work()
    until(lambda: hosts.words() == ["begins"])
    waiting = hosts.work("--stop-signal", "SIGQUIT")
    until(lambda: "pg_try" in (hosts.server / "asked").read_text().split("application_name")[-1])
    time.sleep(0.5)
    if state:
        hosts.turn(state)
    waiting.send_signal(signal.SIGQUIT)
    assert waiting.wait(2) == 0


# ---- the lock is lost -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("down", "server closed the connection unexpectedly"),
        ("forgetful", "does not know of this session's lock any more"),
        ("frozen", "has not confirmed the lock for 1 s"),
    ],
)
def test_without_its_lock_it_stops_and_comes_again(hosts: Hosts, state: str, words: str) -> None:
    process = hosts.work("--stop-signal", "SIGQUIT", "--stop-seconds", "60")
    until(lambda: hosts.words() == ["begins"])
    hosts.turn(state)
    assert process.wait(5) == 75
    assert hosts.words() == ["begins", "signal 3", "ends"]
    assert words in said(process)


@pytest.mark.parametrize(("given", "most"), [("60", 0.8), ("0.2", 0.2)])
def test_what_does_not_stop_in_time_is_killed(hosts: Hosts, given: str, most: float) -> None:
    process = hosts.work("--stop-seconds", given, how="stubborn")
    until(lambda: hosts.words() == ["begins"])
    hosts.turn("down")
    assert process.wait(5) == 75
    [_, (_, worker, told)] = hosts.log()
    until(lambda: not runs(worker), seconds=1)
    assert most <= time.monotonic() - told < most + 0.6


def test_the_times_make_it_end_here_before_it_begins_elsewhere() -> None:
    spec = importlib.util.spec_from_file_location("once", SCRIPT)
    assert spec
    assert spec.loader
    once = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(once)
    # The main thread looks every half of CHECK_SECONDS.
    ended = once.LOST_SECONDS + once.CHECK_SECONDS / 2 + once.STOP_SECONDS
    assert ended + 3 < once.RELEASE_SECONDS <= 30
    assert ended < once.CAUTION_SECONDS
    limits = {name: int(value) for name, value in once.SERVER_LIMITS.items()}
    probes = limits["tcp_keepalives_interval"] * limits["tcp_keepalives_count"]
    assert limits["tcp_keepalives_idle"] + probes == once.RELEASE_SECONDS == limits["tcp_user_timeout"] / 1000


def test_after_the_server_was_away_it_begins_nowhere_before_it_has_ended_everywhere(hosts: Hosts) -> None:
    hosts.work()
    until(lambda: hosts.words() == ["begins"])
    waiting = hosts.work()
    until(lambda: (hosts.server / "asked").read_text().count("pg_try") > 5)
    hosts.turn("down")
    until(lambda: "ends" in hosts.words())
    time.sleep(0.5)
    hosts.turn("down", on=False)
    back = time.monotonic()
    until(lambda: hosts.words().count("begins") == 2)
    assert hosts.log()[-1][2] - back > 1.5
    assert waiting.poll() is None


# ---- where the lock is ------------------------------------------------------------------------------------------------


def test_a_session_has_limits_at_both_ends(hosts: Hosts) -> None:
    hosts.work()
    until(lambda: hosts.words() == ["begins"])
    url, given = eval((hosts.server / "connected").read_text())
    assert url == ()
    name = given.pop("application_name")
    assert name == f"quintet shop worker beat on {os.uname().nodename}"
    assert given == {
        "dbname": "shop",
        "connect_timeout": 5,
        "keepalives": 1,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 2,
        # As LOST_SECONDS was when the module was read.
        "tcp_user_timeout": 6000,
    }
    asked = (hosts.server / "asked").read_text()
    for limit in ("25000 tcp_user_timeout", "0 idle_session_timeout", "0 statement_timeout", "10 tcp_keepalives_idle"):
        assert f"WHERE name = %s {limit}\n" in asked


@pytest.mark.parametrize("kind", ["variable", "secret"])
def test_the_direct_way_past_a_pooler_is_taken(hosts: Hosts, kind: str) -> None:
    url = "postgresql://shop@db/shop?sslmode=verify-full"
    (hosts.source / "credentials").mkdir()
    (hosts.source / "credentials" / ("DATABASE_DIRECT_URL" if kind == "secret" else "SECRET_KEY")).write_text(
        f"{url}\n"
    )
    other = {"DATABASE_DIRECT_URL": url} if kind == "variable" else {}
    hosts.work(CREDENTIALS_DIRECTORY=str(hosts.source / "credentials"), **other)
    until(lambda: hosts.words() == ["begins"])
    given = eval((hosts.server / "connected").read_text())
    assert given[0] == (url,)
    assert "dbname" not in given[1]
    assert given[1]["tcp_user_timeout"] == 6000


@pytest.mark.parametrize(
    ("state", "words"),
    [("pooled", "Name the database itself in DATABASE_DIRECT_URL"), ("sqlite", "the app's database is sqlite")],
)
def test_where_no_lock_is_any_good_it_fails(hosts: Hosts, state: str, words: str) -> None:
    hosts.turn(state)
    process = hosts.work()
    assert process.wait(15) == 1
    assert words in said(process)
    assert hosts.log() == []


def test_settings_that_do_not_import_fail(hosts: Hosts) -> None:
    (hosts.source / "django/db.py").write_text("raise RuntimeError('no such thing')")
    process = hosts.work(DJANGO_SETTINGS_MODULE="config.settings")
    assert process.wait(15) == 1
    assert "The settings 'config.settings' name no database that can be used: RuntimeError: no such thing" in said(
        process
    )


def test_a_database_that_is_away_is_waited_for(hosts: Hosts) -> None:
    hosts.turn("down")
    hosts.work()
    time.sleep(0.5)
    hosts.turn("down", on=False)
    # It had no session that could have held a lock.
    until(lambda: hosts.words() == ["begins"], seconds=1.5)


# ---- the timers -------------------------------------------------------------------------------------------------------


def test_a_file_tells_where_the_timers_run(hosts: Hosts, tmp_path: Path) -> None:
    files = [tmp_path / name / "holds" for name in ("one", "two")]
    for file in files:
        file.parent.mkdir()
    began = time.monotonic()
    first = hosts.start("hold", work="timers", RUNTIME_DIRECTORY=str(files[0].parent))
    until(files[0].exists)
    assert time.monotonic() - began > 0.5, "what was due elsewhere is over"
    second = hosts.start("hold", work="timers", RUNTIME_DIRECTORY=str(files[1].parent))
    time.sleep(1)
    assert not files[1].exists()
    first.send_signal(signal.SIGTERM)
    assert first.wait(15) == 0
    assert not files[0].exists()
    until(files[1].exists)
    hosts.turn("down")
    assert second.wait(15) == 75
    assert not files[1].exists()


# ---- what it says -----------------------------------------------------------------------------------------------------


def test_it_tells_systemd_whether_it_works_here(hosts: Hosts, tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(address)
        heard.settimeout(10)
        first = hosts.work(NOTIFY_SOCKET=address)
        assert heard.recv(999) == b"STATUS=does this"
        hosts.work(NOTIFY_SOCKET=address)
        assert heard.recv(999) == f"STATUS=waits: {os.uname().nodename} does this".encode()
        first.send_signal(signal.SIGTERM)
        assert heard.recv(999) == b"STATUS=does this"
        hosts.turn("down")
        assert heard.recv(999) == b"STATUS=stops, as it has lost its lock"
