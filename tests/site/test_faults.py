"""What goes wrong, one thing after the other, on a host that must go on serving (Molecule scenario faults)."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hosts import ROOT, WAIT_SECONDS, Host, Played, Site, play, receive, wait_for
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


def main_process(unit: str) -> int:
    return int(HOST.run("systemctl", "show", "--property=MainPID", "--value", unit))


def children(process: int) -> set[int]:
    return {int(child) for child in HOST.run("cat", f"/proc/{process}/task/{process}/children").split()}


def gunicorn() -> int:
    return main_process(f"gunicorn-{APP}@{HOST.current(APP)}.service")


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


# ---- candidates that fail -----------------------------------------------------------------------------------------

SOURCE = Path(os.environ.get("MOLECULE_EPHEMERAL_DIRECTORY", "/nonexistent")) / "sample_app"


def deploy(**variables: object) -> Played:
    """Deploy the app, with more variables."""
    return play("playbooks/deploy.yml", "--extra-vars", json.dumps({"app": APP, **variables}))


def deploy_well(**variables: object) -> str:
    """Deploy the app, which must succeed; returns the generation that serves then."""
    played = deploy(**variables)
    assert played.code == 0, played.output[-6000:]
    return serving()


def change_code() -> None:
    """Change a line of code that does nothing."""
    (SOURCE / "faults/change.py").write_text(f"CHANGE = {uuid.uuid4().hex!r}\n")


def status() -> dict[str, Any]:
    """Return what the host command says of the app."""
    app: dict[str, Any] = HOST.quintet("status", APP)["apps"][0]
    return app


def generations() -> dict[str, dict[str, Any]]:
    """Return what there is of each generation."""
    return {one["generation"]: one for one in status()["generations"]}


def serving() -> str:
    """Return the generation that `current` names and that answers over HTTP and over WebSocket, which must be the same."""
    current = HOST.current(APP)
    assert (answers(), talks()) == (current, current)
    return current


def fails(played: Played, *words: str) -> None:
    """Demand that a play has failed and says why."""
    told = played.text.partition("fatal:")[2]
    assert played.code != 0
    assert not [one for one in words if one not in told], told[-4000:]


def refused(*command: str) -> str:
    """Run a host command that must fail; returns what it says, in one line."""
    told = HOST.run("sh", "-c", '"$@" 2>&1; echo "code $?"', "sh", *command)
    assert re.search(r"^code 1$", told, re.MULTILINE), told
    return " ".join(told.split())


FAULTS = {
    "boot": ["Step: start", "RuntimeError: this generation does not boot"],
    "websocket": ["Step: probe", "failed the probe 'websocket /ws/health/'", "got 403 instead of 101"],
    "hook": ["Step: before_switch", "look once more"],
    "worker": ["Step: workers", "RuntimeError: this worker dies"],
    "edge": ["Step: edge", "GET /healthz through 127.0.0.1:80: got 503 not through Nginx instead of 200"],
}


@pytest.fixture
def built(load: Load) -> str:
    """A candidate that was built and never switched to, since its controller was killed just then; its lock is ended."""
    known = set(generations())
    change_code()
    deploy_killed("activate | Start, probe and switch to the generation")
    HOST.run("quintet", "unlock", APP)
    (candidate,) = set(generations()) - known
    return candidate


@pytest.fixture
def earlier() -> str:
    """The good generation before the one that serves; it is made on a host that has none yet."""
    if status()["previous"] is None:
        change_code()
        deploy_well()
    return str(status()["previous"])


@contextmanager
def full(path: str, free: int = 0) -> Iterator[None]:
    """Put a small file system with the same content, and with so many bytes free, over a directory of the host."""
    over = "/mnt/full"
    script = f"""
        mkdir -p {over}
        mount -t tmpfs -o size=$(( $(du -s -B1 {path} | cut -f1) * 2 + 8388608 + {free} )) tmpfs {over}
        cp -a {path}/. {over}
        chmod --reference={path} {over} && chown --reference={path} {over}
        head -c {free} /dev/zero > {over}/.free
        cat /dev/zero > {over}/.rest 2> /dev/null || rm {over}/.free
        mount --bind {over} {path}
    """
    HOST.run("sh", "-euc", script)
    try:
        yield
    finally:
        HOST.run("sh", "-c", f"umount {path} && umount {over}")


@contextmanager
def another_lock() -> Iterator[None]:
    """Let the app's lock be another one, so that the next deploy makes another virtual environment."""
    lock = SOURCE / "requirements.txt"
    locked = lock.read_text()
    lock.write_text(f"{locked}# Another lock: {uuid.uuid4()}\n")
    try:
        yield
    finally:
        lock.write_text(locked)


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
        with another_lock(), full(path, free):
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
        with full(f"/var/lib/quintet/{APP}"):
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
        with full(f"/var/lib/quintet/{APP}"):
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
        with full(path):
            there = set(generations())
            HOST.run("quintet", "prune", APP, "--keep", "1")
            left = set(generations())
            assert serving() == other
        assert {before, other} <= left < there
        assert earlier not in left
        assert toll(load) == lost, load.ledger.problems[-5:]


def count_of(rows: str) -> int:
    """Return how many rows of the app's database there are of a table, or of a table and a condition."""
    return int(HOST.run("psql", "--dbname=chat", "-tAc", f"select count(*) from {rows}", user="postgres"))


def chat_messages() -> int:
    """Return how many messages the database has."""
    return count_of("chat_message")


def times_migrated(name: str) -> int:
    """Return how often the database has a migration of the app that the tests add."""
    return count_of(f"django_migrations where app = 'faults' and name = '{name}'")


def write_migration(name: str, operation: str) -> Path:
    """Write a migration of the app that the tests add; returns its file."""
    path = SOURCE / f"faults/migrations/{name}.py"
    before = sorted(one.stem for one in path.parent.glob("0*.py"))[-1:]
    path.write_text(
        "from django.db import migrations\n\n\n"
        "def fail(apps, editor):\n    raise RuntimeError('this migration fails')\n\n\n"
        f"class Migration(migrations.Migration):\n    dependencies = {[('faults', one) for one in before]}\n"
        f"    operations = [migrations.RunPython({operation}, migrations.RunPython.noop)]\n"
    )
    return path


def test_a_failing_migration_leaves_its_dump_and_the_way_back() -> None:
    before, known = serving(), set(generations())
    path = write_migration("0001_failing", "fail")
    played = deploy()
    path.unlink()
    fails(played, "RuntimeError: this migration fails")
    assert serving() == before
    (candidate,) = set(generations()) - known
    assert generations()[candidate]["state"] == "failed"
    assert "failed on" in refused("quintet", "activate", APP, candidate)
    command = re.search(rf"quintet restore {APP} (/var/lib/quintet/{APP}/dumps/{candidate}-\w+\.dump)", played.text)
    assert command, played.text[-3000:]
    count = chat_messages()
    assert talks()
    assert chat_messages() == count + 1
    HOST.run(*command.group().split())
    # Those that serving() has asked for were before the dump, that of talks() after it.
    assert chat_messages() <= count
    assert serving() == before


def test_a_disk_that_is_full_during_the_dump_leaves_the_database() -> None:
    before, dumps = serving(), f"/var/lib/quintet/{APP}/dumps"
    path = write_migration("0001_dumped", "migrations.RunPython.noop")
    # More than the dump needs, which is asked for first, and nothing as soon as that was asked.
    fill = f"until [ -e {dumps}/.*.part ]; do sleep 0.05; done; cat /dev/zero > {dumps}/.more 2> /dev/null || true"
    HOST.run("mkdir", "--parents", dumps)
    with full(dumps, 32 * 1024**2), ThreadPoolExecutor() as threads:
        filled = threads.submit(HOST.run, "timeout", "60", "sh", "-c", fill)
        played = deploy()
        filled.result()
        assert HOST.fails("sh", "-c", f"ls {dumps}/.*.part")
        assert serving() == before
    path.unlink()
    fails(
        played, "pg_dump ended with code 1, so nothing was migrated", "No space left on device", f"quintet prune {APP}"
    )
    assert status()["lock"] is None
    assert times_migrated("0001_dumped") == 0


@contextmanager
def transaction(statement: str) -> Iterator[None]:
    """Keep a transaction of the app's database open in which a statement was executed."""
    command = ["docker", "exec", "--interactive", HOST.name, "runuser", "-u", APP, "--", "psql", "--quiet", APP]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as session:
        assert session.stdin
        assert session.stdout
        session.stdin.write(f"BEGIN; {statement};\n\\echo begun\n")
        session.stdin.flush()
        assert any(line == "begun\n" for line in session.stdout), "psql has ended"
        yield
        session.stdin.close()


def test_a_migration_gives_up_rather_than_keep_others_waiting() -> None:
    before = serving()
    halves = [
        int.from_bytes(hashlib.sha256(word).digest()[:4], "big", signed=True) for word in (b"quintet", b"migrate")
    ]
    with transaction("SELECT pg_advisory_lock({}, {})".format(*halves)):
        told = refused("quintet", "migrate", APP, before)
    assert "Another session migrates the database and did not end within 2 s" in told
    path = write_migration("0001_waiting", "lambda apps, editor: editor.execute('LOCK TABLE chat_room')")
    with transaction("SELECT * FROM chat_room LIMIT 0"):
        played = deploy()
        assert serving() == before
    path.unlink()
    fails(played, "faults.0001_waiting did not get a lock on a table within 2 s and gave up", "Open for longest")


# ---- one at a time ------------------------------------------------------------------------------------------------

KILLS_FILE = SOURCE.parent / "tasks"


def deploy_killed(at: str = "", after: float = 0, **variables: object) -> None:
    """Deploy, and kill the controller with SIGKILL at the start of a task, or so many seconds later; no task: at none."""
    KILLS_FILE.unlink(missing_ok=True)
    done = subprocess.run(
        [
            *("ansible-playbook", "-i", str(SOURCE.parent / "inventory"), "playbooks/deploy.yml"),
            *("--extra-vars", json.dumps({"app": APP, **variables})),
        ],
        cwd=ROOT,
        env={
            **os.environ,
            "ANSIBLE_CALLBACK_PLUGINS": str(ROOT / "tests/site/kill_callbacks"),
            "ANSIBLE_CALLBACKS_ENABLED": "kill_controller",
            "KILL_TASKS": str(KILLS_FILE),
            "KILL_AT": at,
            "KILL_AFTER": str(after),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == (-signal.SIGKILL if at else 0), f"{at}: {done.returncode}\n{done.stdout}{done.stderr}"


def runs(generation: str) -> bool:
    """Say whether any unit of a generation runs."""
    return not {"inactive", "failed", "unknown"} >= set(generations()[generation]["units"].values())


def is_being_changed() -> bool:
    """Say whether a host command is changing the app at this moment, or a module of Ansible's runs, which may be about to."""
    listed = HOST.run("sh", "-c", "for file in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $file; echo; done 2> /dev/null")
    modules = [line for line in listed.splitlines() if re.fullmatch(r"/usr/bin/python3[.0-9]*", line.strip())]
    return bool(modules) or HOST.fails("flock", "--nonblock", f"/var/lib/quintet/{APP}/lock", "true")


def configuration() -> str:
    """Return a digest of all that the host command goes by."""
    return HOST.run("sh", "-c", f"cd /etc/quintet/{APP} && find . -type f -exec sha256sum {{}} + | sort")


def test_a_second_deploy_and_an_activate_are_refused_while_one_is_under_way(earlier: str) -> None:
    before = serving()
    HOST.run("rm", "--force", f"/srv/{APP}/shared/media/go")
    with ThreadPoolExecutor() as threads:
        first = threads.submit(deploy, fault="wait")
        try:
            wait_for("the first deploy", lambda: status()["lock"] is not None)
            lock = status()["lock"]
            holder = f"is being changed by {lock['holder']} since {lock['since']}"
            known = configuration()
            fails(deploy(mark="second"), holder)
            assert configuration() == known, "the first one's probes, settings and environment"
            assert holder in refused("quintet", "activate", APP, earlier)
            assert holder in refused("quintet", "rollback", APP)
            assert serving() == before
        finally:
            HOST.run("touch", f"/srv/{APP}/shared/media/go")
        assert first.result().code == 0, first.result().output[-4000:]
    assert status()["lock"] is None
    assert serving() not in (before, earlier)


def test_a_lock_from_elsewhere_is_kept_until_somebody_breaks_it() -> None:
    elsewhere = {"host": "elsewhere/1", "boot": "2", "pid_namespace": "pid:[3]", "pid": 4, "started": 5}
    begin = ["quintet", "begin", APP, HOST.current(APP), "--token", "T" * 24, "--by", "ann@elsewhere"]
    begin += ["--controller", json.dumps(elsewhere)]
    HOST.run(*begin)
    told = refused("quintet", "rollback", APP)
    assert "is being changed by ann@elsewhere since" in told
    assert f"quintet unlock {APP}, or run the playbook with -e django_app_break_lock=true" in told
    HOST.run("quintet", "unlock", APP)
    assert status()["lock"] is None
    HOST.run(*begin)
    change_code()
    deploy_well(django_app_break_lock=True)
    assert status()["lock"] is None


def test_a_reboot_in_mid_deploy_goes_back_and_leaves_no_lock() -> None:
    before = serving()
    change_code()
    deploy_killed("confirm | Let the switch stay")
    candidate = serving()
    assert candidate != before
    assert status()["unconfirmed"]["before"] == before
    assert status()["lock"]
    subprocess.run(["docker", "restart", HOST.name], check=True, capture_output=True)
    wait_for("the site after its reboot", lambda: answers() == talks() == before)
    assert serving() == before
    assert (status()["lock"], status()["unconfirmed"]) == (None, None)
    assert not runs(candidate)
    # What it had built is as good as before.
    assert deploy_well() == candidate


def test_a_loss_of_power_in_mid_build_costs_a_build() -> None:
    before = serving()
    change_code()
    deploy_killed(
        "generation | Check that the app imports, collect its static files, and check Gunicorn's configuration", 0.5
    )
    subprocess.run(["docker", "kill", HOST.name], check=True, capture_output=True)
    subprocess.run(["docker", "start", HOST.name], check=True, capture_output=True)
    wait_for("the site after its loss of power", lambda: answers() == talks() == before)
    assert (status()["lock"], status()["unconfirmed"]) == (None, None)
    assert "building" in {one["state"] for one in generations().values()}
    assert deploy_well() != before


# ---- a controller that dies ---------------------------------------------------------------------------------------

# What happens on the controller alone: a death there is one before the next remote task.
LOCAL = {"set_fact", "assert", "debug", "fail", "include_role", "include_tasks", "validate_argument_spec"}
LOCAL |= {"app_release", "check_apps"}
CONFIRM_SECONDS = 5
# Within tasks too, in seconds after their start.
WITHIN = {"activate | Start, probe and switch to the generation": (0.7, 2.0), "confirm | Let the switch stay": (0.3,)}
# After so many kills a run must come to its end.
KILLS_IN_A_ROW = 8


@dataclass(frozen=True)
class Task:
    """A task of a deploy, by its number from 1."""

    number: int
    action: str
    name: str

    @property
    def is_remote(self) -> bool:
        """Whether it does anything on the host."""
        return self.action.rpartition(".")[2] not in LOCAL


def remote_tasks() -> list[Task]:
    """Return the tasks of the last recorded run that did anything on the host."""
    lines = [line.split("\t") for line in KILLS_FILE.read_text().splitlines()]
    skipped = {int(words[0]) for words in lines if words[1] == "skipped"}
    tasks = [Task(int(words[0]), *words[2:]) for words in lines if words[1] == "start"]
    return [task for task in tasks if task.is_remote and task.number not in skipped]


def is_settled() -> bool:
    """Say whether nothing is going on: no host command, no switch that waits, no drain."""
    return not is_being_changed() and status()["unconfirmed"] is None


def converges() -> None:
    """Demand that a run comes to its end, that the next changes nothing, and that what runs is what is on disk."""
    current = deploy_well()
    again = deploy()
    assert (again.code, again.changed) == (0, 0), again.changed_tasks
    assert serving() == current
    found = generations()
    assert set(found[current]["units"].values()) == {"active"}
    others = set(found) - {current}
    wait_for("the drains", lambda: not any(runs(one) for one in others))
    listed = HOST.run("systemctl", "list-units", "--plain", "--no-legend", "--state=active", f"*-{APP}*@*")
    assert {line.split()[0].partition("@")[2].partition(".")[0] for line in listed.splitlines()} == {current}
    assert status()["lock"] is None


def test_a_controller_killed_at_any_task_leaves_a_site_that_serves() -> None:
    change_code()
    deploy_killed()
    tasks = remote_tasks()
    moments = [(str(task.number), 0.0, task.name) for task in tasks]
    moments += [
        (str(task.number), after, f"{task.name}, after {after} s")
        for task in tasks
        for name, times in WITHIN.items()
        if task.name.endswith(name)
        for after in times
    ]
    assert len(tasks) >= 10
    assert len(moments) == len(tasks) + 3
    rows, undone = [], 0
    for count, (at, after, name) in enumerate(moments, start=1):
        before = serving()
        change_code()
        began = time.monotonic()
        deploy_killed(at, after, django_app_confirm_seconds=CONFIRM_SECONDS)
        killed = time.monotonic()
        assert answers(), name
        assert talks(), name
        waits = status()["unconfirmed"] is not None
        # The host ends by itself what it was told to begin, and takes back what nobody confirms.
        wait_for(f"the host after the kill at {name}", is_settled, 30 + CONFIRM_SECONDS)
        assert generations()[serving()]["state"] == "good", name
        if waits and not after:
            assert serving() == before, name
            undone += 1
        rows.append(f"{at:>3}  {killed - began:5.1f} s  {time.monotonic() - killed:5.1f} s  {name}")
        if count % KILLS_IN_A_ROW == 0 or count == len(moments):
            converges()
    assert undone > 0
    print("", "task  until killed  until settled", *rows, sep="\n")


def test_a_controller_killed_in_a_change_of_everything_leaves_a_site_that_serves() -> None:
    """Where a change of code alone does not come by: another environment, the app's own commands, a migration."""
    write_migration("0000_killed", "migrations.RunPython.noop")
    hooks = {"build": [{"command": "sleep 1"}], "before_migrate": [{"command": "sleep 1"}]}
    before = serving()
    with another_lock():
        for name, after in (
            ("environment | Install the locked dependencies", 0.5),
            ("generation | Run the app's build commands", 0.5),
            ("migrate | Migrate the database with the next generation's code", 0),
            # In its hook, which the host brings to its end, and the dump and the migration after it.
            ("migrate | Migrate the database with the next generation's code", 0.5),
        ):
            deploy_killed(name, after, more_hooks=hooks, django_app_confirm_seconds=CONFIRM_SECONDS)
            assert answers() == talks() == before, name
            wait_for(f"the host after the kill at {name}", is_settled)
        changed = deploy_well(more_hooks=hooks)
        assert changed != before
        again = deploy(more_hooks=hooks)
        assert (again.code, again.changed) == (0, 0), again.changed_tasks
    assert times_migrated("0000_killed") == 1


# ---- the way back -------------------------------------------------------------------------------------------------


def who() -> dict[str, Any]:
    """Return what the code and the environment say of themselves."""
    value: dict[str, Any] = SITE.get("/who?number=1").json
    return value


def environment() -> str:
    """Return the virtual environment that the servers of the current generation run in."""
    (venv,) = set(HOST.run("sh", "-c", f"readlink --canonicalize /proc/{gunicorn()}/cwd/../venv").split())
    return venv


def test_a_rollback_brings_code_dependencies_environment_and_settings_back() -> None:
    code = SOURCE / "config/load.py"
    first, dependencies = serving(), environment()
    assert (who()["version"], who()["mark"], len(children(gunicorn()))) == ("1", "first", WORKERS)
    original = code.read_text()
    code.write_text(original.replace('VERSION = "1"', 'VERSION = "2"'))
    with another_lock():
        second = deploy_well(mark="second", workers=1)
    code.write_text(original)
    assert (who()["version"], who()["mark"], len(children(gunicorn()))) == ("2", "second", 1)
    assert environment() != dependencies

    began = time.monotonic()
    HOST.run("quintet", "rollback", APP)
    print(f"\nquintet rollback took {time.monotonic() - began:.1f} s")
    assert serving() == first
    assert (who()["version"], who()["mark"], len(children(gunicorn()))) == ("1", "first", WORKERS)
    assert environment() == dependencies
    assert "is rolled back already" in refused("quintet", "rollback", APP)

    # By the playbook, to one that is named.
    began = time.monotonic()
    played = rollback(generation=second.partition("-")[0])
    print(f"rollback.yml took {time.monotonic() - began:.1f} s")
    assert played.code == 0, played.output[-4000:]
    assert serving() == second
    assert (who()["version"], who()["mark"]) == ("2", "second")
    assert status()["hold"]["generation"] == second
    # A deploy by name ends the hold.
    assert deploy_well() != second
    assert (who()["version"], who()["mark"], status()["hold"]) == ("1", "first", None)


def rollback(**variables: object) -> Played:
    """Roll the app back by the playbook."""
    return play("playbooks/rollback.yml", "--extra-vars", json.dumps({"app": APP, **variables}))


def test_a_rollback_across_migrations_needs_a_word() -> None:
    before = serving()
    write_migration("0001_nothing", "migrations.RunPython.noop")
    after = deploy_well()
    refusal = "does not know migrations that the database has: faults.0001_nothing"
    assert refusal in refused("quintet", "rollback", APP)
    fails(rollback(), refusal, "-e accept_migrations=true")
    assert serving() == after
    HOST.run("quintet", "rollback", APP, "--accept-migrations")
    assert serving() == before
    assert rollback(generation=after).code == 0
    assert serving() == after


# ---- workers and timers -------------------------------------------------------------------------------------------

TICKS = f"/srv/{APP}/shared/media/ticks"
TICK = {"name": "tick", "command": 'sh -c "echo $QUINTET_GENERATION >> $MEDIA_ROOT/ticks"', "calendar": "*:*:*"}


def moments(generation: str) -> dict[str, float]:
    """Return when systemd last said of a generation's worker that it was started and that it was stopped, in seconds."""
    command = ["journalctl", "--quiet", "--output=json", f"UNIT=worker-{APP}-idle-1@{generation}.service"]
    entries = [json.loads(line) for line in HOST.run(*command).splitlines()]
    jobs = {"start": "started", "stop": "stopped"}
    return {
        jobs[entry["JOB_TYPE"]]: int(entry["__MONOTONIC_TIMESTAMP"]) / 1e6
        for entry in entries
        if entry.get("JOB_TYPE") in jobs and entry.get("JOB_RESULT") == "done"
    }


def ticks() -> list[str]:
    """Return the generations whose timer has run its job, in the order of the runs."""
    return HOST.run("sh", "-c", f"cat {TICKS} 2> /dev/null || true").split()


def test_workers_and_timers_run_in_the_current_generation_alone() -> None:
    change_code()
    first = deploy_well(timers=[TICK])
    wait_for("the timer of the first generation", lambda: first in ticks())
    change_code()
    second = deploy_well(timers=[TICK])
    wait_for("the timer of the second generation", lambda: second in ticks())
    assert moments(first)["stopped"] <= moments(second)["started"], "never two at the same time"
    (worker,) = HOST.processes(f"worker-{APP}-*")
    assert f"QUINTET_GENERATION={second}" in HOST.run("sh", "-c", f"tr '\\0' '\\n' < /proc/{worker}/environ").split()
    order = [one for one in ticks() if one in (first, second)]
    assert first not in order[order.index(second) :], "no timer of a generation that does not serve"
    # They go back with it.
    HOST.run("quintet", "rollback", APP)
    assert serving() == first
    assert moments(second)["stopped"] <= moments(first)["started"]
    ran = len(ticks())
    wait_for("the timer of the first generation again", lambda: len(ticks()) > ran + 1)
    assert set(ticks()[ran + 1 :]) == {first}


# ---- hooks --------------------------------------------------------------------------------------------------------


def test_hooks_run_at_their_moments() -> None:
    told = {"on_failure": " $QUINTET_STEP $QUINTET_FAILED_GENERATION", "before_migrate": "", "after_switch": ""}
    hooks = {
        moment: [{"command": f'echo "{moment} $QUINTET_GENERATION{more}" >> "$MEDIA_ROOT/hooks"'}]
        for moment, more in told.items()
    }
    hooks |= {moment: [{"command": f"echo {moment} $(id -un) >> hooks"}] for moment in ("build", "after_build")}
    write_migration("0002_for_hooks", "migrations.RunPython.noop")
    first = deploy_well(more_hooks=hooks)
    known = set(generations())
    fails(deploy(more_hooks=hooks, fault="boot"), *FAULTS["boot"])
    (failed,) = set(generations()) - known
    assert HOST.run("cat", f"/srv/{APP}/shared/media/hooks").splitlines() == [
        f"before_migrate {first}",
        f"after_switch {first}",
        f"on_failure {first} start {failed}",
    ]
    # The time limit is systemd's; what the hook has started ends with it.
    sleeps = {"before_switch": [{"name": "endless", "command": "sleep 600", "timeout_seconds": 1}]}
    late = "did not end within 1 s and was stopped"
    fails(deploy(more_hooks=sleeps), "the hook 'endless' (before_switch) of generation", late, "Step: before_switch")
    assert serving() == first
    assert HOST.fails("systemctl", "is-active", f"quintet-hook-{APP}.service")
    built = HOST.run("cat", f"/srv/{APP}/generations/{first}/src/hooks")
    assert built.splitlines() == [f"build {APP}-build", f"after_build {APP}-build"]
