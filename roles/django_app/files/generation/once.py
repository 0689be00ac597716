"""Lets an app's single work run on one of several hosts: on the one whose session has an advisory lock of the app's database.

Runs as the app's user, with the app's own Python and environment, in the source's directory. `run` waits for the lock of a
worker, then runs its command as a child; `hold` waits for that of the timers, and keeps a file in $RUNTIME_DIRECTORY as long as
it has it. The lock moves by itself: the server ends a session that it hears nothing of for RELEASE_SECONDS. A session that the
server does not confirm for LOST_SECONDS counts as lost, and its work has STOP_SECONDS at most to end: less in all, so that it has
ended here before it begins elsewhere. Exits with the child's code, 0 when told to stop, 1 where it can't work, 75 without the lock.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

# Between two tries to get the lock, and between two questions whether it is still there.
RETRY_SECONDS = 1.0
CHECK_SECONDS = 2.0
# How often one that waits asks who has it.
HOLDER_SECONDS = 5.0
# Without a confirmation for so long it counts as lost.
LOST_SECONDS = 6.0
# What the work then has at most to end by itself.
STOP_SECONDS = 14.0
# After so long without a sign of life the server ends the session, and another host gets the lock.
RELEASE_SECONDS = 25
# After a session broke: the server may have restarted, and knows of no lock from before. Who had it has stopped by then.
CAUTION_SECONDS = LOST_SECONDS + STOP_SECONDS + 2
# Two hosts need not see a moment at the same time: what was due on the one before is over when the timers are due here.
SETTLE_SECONDS = 3.0

FAILED, LOST = 1, 75
# Whoever ends by one of these has not failed, for systemd.
CLEAN_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)

# For libpq: this side's own limits, so that nothing waits for a server that is gone.
CLIENT_LIMITS = {
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 2,
    "tcp_user_timeout": int(LOST_SECONDS * 1000),
}
# For the server's end of this session: when it gives it up, and that nothing else ends it. Those that it knows are set.
SERVER_LIMITS = {
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": str((RELEASE_SECONDS - 10) // 5),
    "tcp_user_timeout": str(RELEASE_SECONDS * 1000),
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "lock_timeout": "0",
    "statement_timeout": "0",
    "transaction_timeout": "0",
}

# Told to the command as they come.
PASSED_ON = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGWINCH")

# The session that has the advisory lock with this key.
OWNER = (
    " FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory' AND granted AND objsubid = 2"
    " AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    " AND classid = %s AND objid = %s"
)

# Becomes a command that the kernel kills when this process is killed, and the lock gone with it (PR_SET_PDEATHSIG). A process of its own,
# as no code of Python's is safe between fork and exec where there are threads; setpriv(1) does more, which the sandbox refuses.
DYING_ALONG = (
    sys.executable,
    "-ISc",
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execvp(sys.argv[1], sys.argv[1:])",
)

# Any session of Python's database interface, and what opens one.
Session = Any
Connect = Callable[[], Session]


class Problem(Exception):
    """What is wrong, where, and what to do: nothing that passes by itself."""


def say(line: str) -> None:
    """Write a line for the journal."""
    print(line, file=sys.stderr, flush=True)


def show(status: str) -> None:
    """Tell systemd, and with it `quintet status`, what is being done."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.sendto(f"STATUS={status}".encode(), address.replace("@", "\0", 1))


def lock_key(app: str, work: str) -> tuple[int, int]:
    """Return both halves of the advisory lock of an app's work; such locks belong to one database."""
    words = (b"quintet", f"{app} {work}".encode())
    first, second = (int.from_bytes(hashlib.sha256(word).digest()[:4], "big", signed=True) for word in words)
    return first, second


def signal_number(name: str) -> int:
    """Return the number of SIGTERM or SIGRTMIN+3; raises Problem for a name that is no signal's."""
    base, sign, offset = name.partition("+" if "+" in name else "-")
    try:
        return int(signal.Signals[base]) + int(sign + (offset or "0"))
    except (KeyError, ValueError) as error:
        raise Problem(f"'{name}' is no signal. Correct the worker's stop_signal.") from error


class Events:
    """Signals, and words of threads, in the order in which they came; a word is 0."""

    def __init__(self, signals: Sequence[int]) -> None:
        self._inlet, self._outlet = socket.socketpair()
        for end in (self._inlet, self._outlet):
            end.setblocking(False)
        signal.set_wakeup_fd(self._inlet.fileno())
        for number in signals:
            signal.signal(number, self._noted)

    @staticmethod
    def _noted(_number: int, _frame: FrameType | None) -> None:
        """Do nothing: Python has written the number into the socket."""

    def tell(self) -> None:
        """End the present wait."""
        with suppress(OSError):
            self._inlet.send(b"\0")

    def wait(self, seconds: float) -> list[int]:
        """Return what has come, after so many seconds at most."""
        if not select.select([self._outlet], [], [], max(seconds, 0))[0]:
            return []
        return list(self._outlet.recv(4096))


class Lock(threading.Thread):
    """Waits for the lock and then sees to it, in a thread: whatever a server does or does not, signals are heard."""

    def __init__(
        self, connect: Connect, errors: type[Exception], key: tuple[int, int], tell: Callable[[], None]
    ) -> None:
        super().__init__(daemon=True)
        self._connect, self._errors, self._tell, self._key = connect, errors, tell, key
        self._not_before = 0.0
        self._said = ""
        # What the main thread reads. `proven` is when the server was last asked whether the lock is here, and said yes.
        self.held = False
        self.proven = 0.0
        self.problem: BaseException | None = None

    @property
    def is_good(self) -> bool:
        """Whether the lock is here, as far as anybody can know."""
        return self.held and time.monotonic() - self.proven < LOST_SECONDS

    def run(self) -> None:
        """Wait for the lock, then prove it again and again until it is lost."""
        try:
            session = self._wait()
            while True:
                # A session that the server ends is readable at once.
                select.select([session.fileno()], [], [], CHECK_SECONDS)
                self._confirm(session)
        except BaseException as error:
            # The main thread is who ends the process.
            self.problem = error
            self.held = False
        self._tell()

    def _wait(self) -> Session:
        session = None
        asked = 0.0
        while True:
            try:
                if session is None:
                    session = self._open()
                began = time.monotonic()
                if began >= self._not_before and _ask(session, "SELECT pg_try_advisory_lock(%s, %s)", *self._key):
                    self._confirm(session)
                    self.proven, self.held = began, True
                    self._tell()
                    return session
                if began >= asked + HOLDER_SECONDS or not asked:
                    asked = began
                    self._note(self._waits_for(session))
            except self._errors as error:
                if session is not None:
                    self._not_before = time.monotonic() + CAUTION_SECONDS
                    with suppress(Exception):
                        session.close()
                session = None
                self._note(f"waits for the database: {' '.join(str(error).split())}")
            time.sleep(RETRY_SECONDS)

    def _open(self) -> Session:
        session = self._connect()
        session.autocommit = True
        for name, value in SERVER_LIMITS.items():
            _ask(session, "SELECT set_config(name, %s, false) FROM pg_settings WHERE name = %s", value, name)
        if session.info.backend_pid != _ask(session, "SELECT pg_backend_pid()"):
            raise Problem(
                "The database is reached through a pooler, which may give this lock's session to others. "
                "Name the database itself in DATABASE_DIRECT_URL, in the app's environment or secrets."
            )
        return session

    def _confirm(self, session: Session) -> None:
        began = time.monotonic()
        unsigned = [half % 2**32 for half in self._key]
        if _ask(session, "SELECT 1" + OWNER + " AND pid = pg_backend_pid()", *unsigned) is None:
            raise Problem("The database does not know of this session's lock any more.")
        self.proven = began

    def _waits_for(self, session: Session) -> str:
        if time.monotonic() < self._not_before:
            return "waits until whoever did this before the database went away must have stopped"
        # Who logs in otherwise, as with a changed password, does not see the name.
        holder = _ask(session, "SELECT application_name" + OWNER, *(half % 2**32 for half in self._key)) or ""
        return f"waits: {holder.rpartition(' on ')[2] or 'another host'} does this"

    def _note(self, status: str) -> None:
        if status != self._said:
            self._said = status
            say(status[:1].upper() + status[1:])
            show(status)


def _ask(session: Session, question: str, *values: object) -> Any:
    """Return the first value of the first row, None where there is none."""
    cursor = session.cursor()
    try:
        cursor.execute(question, values)
        row = cursor.fetchone()
        return row[0] if row else None
    finally:
        cursor.close()


def wait_for(lock: Lock, events: Events, ending: Sequence[int]) -> bool:
    """Wait for the lock; returns False when told to stop. Raises what the lock's thread ended with."""
    while not lock.held:
        if lock.problem:
            raise lock.problem
        if any(number in ending for number in events.wait(RETRY_SECONDS)):
            return False
    return True


def run(lock: Lock, events: Events, command: Sequence[str], stop_signal: int, stop_seconds: float) -> int:
    """Run a command as long as the lock is here; returns its exit code, less than 0 for a signal, or LOST."""
    environment = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
    # SIGPIPE stays as systemd has it.
    child = subprocess.Popen([*DYING_ALONG, *command], env=environment, restore_signals=False)
    say("Does this now")
    show("does this")
    while lock.is_good:
        for number in events.wait(CHECK_SECONDS / 2):
            if number and number != signal.SIGCHLD:
                child.send_signal(number)
        code = child.poll()
        if code is not None:
            return code
    say(f"Stops: {lost(lock)}")
    show("stops, as it has lost its lock")
    child.send_signal(stop_signal)
    end = time.monotonic() + min(stop_seconds, STOP_SECONDS)
    while child.poll() is None and time.monotonic() < end:
        # A second signal, of systemd's, hurries what is stopping already.
        for number in events.wait(min(end - time.monotonic(), 0.5)):
            if number and number != signal.SIGCHLD:
                child.send_signal(number)
    child.kill()
    return LOST


def hold(lock: Lock, events: Events, file: Path, ending: Sequence[int]) -> int:
    """Keep a file as long as the lock is here; returns 0 when told to stop, or LOST."""
    settled = time.monotonic() + SETTLE_SECONDS
    say("Lets the timers run here now")
    show("lets the timers run here")
    try:
        while lock.is_good:
            now = time.monotonic()
            if now >= settled and not file.exists():
                file.touch()
            pause = CHECK_SECONDS / 2 if now >= settled else settled - now
            if any(number in ending for number in events.wait(pause)):
                return 0
    finally:
        file.unlink(missing_ok=True)
    say(f"Lets no timer run here any more: {lost(lock)}")
    return LOST


def lost(lock: Lock) -> str:
    """Return why the lock is not here any more."""
    if lock.problem:
        return " ".join(str(lock.problem).split()) or type(lock.problem).__name__
    return f"the database has not confirmed the lock for {LOST_SECONDS:g} s"


def direct_url() -> str:
    """Return the address past a pooler, a secret or a variable; empty where the app has none."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if directory and (file := Path(directory) / "DATABASE_DIRECT_URL").is_file():
        return file.read_text().strip()
    return os.environ.get("DATABASE_DIRECT_URL", "").strip()


def database(work: str) -> tuple[Connect, type[Exception]]:
    """Return what opens a session of the app's database, and its errors; raises Problem.

    The settings are imported, but not the app: that would cost its memory once more.
    """
    sys.path.insert(0, str(Path.cwd()))
    try:
        connection = importlib.import_module("django.db").connection
        vendor = connection.vendor
    except Exception as error:
        settings = os.environ.get("DJANGO_SETTINGS_MODULE")
        raise Problem(
            f"The settings '{settings}' name no database that can be used: {type(error).__name__}: {error}"
        ) from error
    if vendor != "postgresql":
        raise Problem(
            f"The hosts can't agree which of them does this: the app's database is {vendor}, which has no advisory locks. "
            "Use PostgreSQL, or set runs_on: every_host for what each host may run."
        )
    driver, url = connection.Database, direct_url()
    found = {} if url else connection.get_connection_params()
    # What Django's own cursors need.
    kept = {name: found[name] for name in found.keys() - {"context", "cursor_factory", "prepare_threshold"}}
    host = f" on {os.uname().nodename}"[:48]
    # PostgreSQL cuts it at 63 bytes.
    named = {"application_name": f"quintet {work}"[: 63 - len(host)] + host}
    given = [url] if url else []
    return lambda: driver.connect(*given, **{**kept, **CLIENT_LIMITS, **named}), driver.Error


def end(code: int) -> NoReturn:
    """End the process as a command ended, at once, whatever the lock's thread waits for."""
    sys.stderr.flush()
    if -code in CLEAN_SIGNALS:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 128 - code)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, usage="%(prog)s {run,hold} OPTION… [-- COMMAND…]")
    parser.add_argument("mode", choices=["run", "hold"])
    parser.add_argument("--app", required=True)
    parser.add_argument("--work", required=True, help="what the lock is for, for example 'worker beat'")
    parser.add_argument("--stop-signal", default="SIGTERM")
    parser.add_argument("--stop-seconds", type=float, default=STOP_SECONDS)
    given, command = sys.argv[1:], []
    if "--" in given:
        split = given.index("--")
        given, command = given[:split], given[split + 1 :]
    arguments = parser.parse_args(given)
    try:
        stop_signal = signal_number(arguments.stop_signal)
        ending = {int(signal.SIGTERM), int(signal.SIGINT), stop_signal}
        uncatchable = {int(signal.SIGKILL), int(signal.SIGSTOP)}
        passed_on = {int(signal.Signals[name]) for name in PASSED_ON}
        events = Events(sorted((ending | passed_on | {int(signal.SIGCHLD)}) - uncatchable))
        connect, errors = database(f"{arguments.app} {arguments.work}")
        lock = Lock(connect, errors, lock_key(arguments.app, arguments.work), events.tell)
        lock.start()
        if not wait_for(lock, events, sorted(ending)):
            end(0)
        if arguments.mode == "run":
            end(run(lock, events, command, stop_signal, arguments.stop_seconds))
        end(hold(lock, events, Path(os.environ["RUNTIME_DIRECTORY"]) / "holds", sorted(ending)))
    except Exception as error:
        say(f"{arguments.app}: {error}")
        end(FAILED)


if __name__ == "__main__":
    main()
