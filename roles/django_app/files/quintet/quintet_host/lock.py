"""One change of an app at a time.

Two locks serve this. A command holds flock(2) on a file while it runs: nothing of it outlives the process. A deploy, which is
many commands with time between them, holds a lease: a file in /run with a token that its commands show. It ends with
the deploy, with a reboot, or when nobody has shown its token for LEASE_SECONDS.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from quintet_host.errors import QuintetError
from quintet_host.files import read_json_object, write_json
from quintet_host.host import Host

# Long enough for a drain's short look at `current`, short enough for an operator.
WAIT_SECONDS = 2.0
# Longer than the longest step of a deploy: a build may take 30 minutes.
LEASE = timedelta(hours=1)


@dataclass(frozen=True)
class Lease:
    """A deploy's lock: who holds it for what, since when, when it was last shown, and the controller's process."""

    token: str
    holder: str
    command: str
    since: str
    heard: str
    controller: dict[str, Any] | None = None

    def __str__(self) -> str:
        return f"{self.holder} since {self.since} ({self.command}, last heard of at {self.heard})"


def read_lease(host: Host, app: str) -> Lease | None:
    """Return the lease that is in force, None when there is none or its holder was not heard of for LEASE."""
    value = read_json_object(host.layout.lease(app))
    try:
        lease = Lease(**value) if value else None
        age = host.clock.now() - datetime.fromisoformat(lease.heard) if lease else LEASE
    except (TypeError, ValueError):
        return None
    # After a step that took longer it is still the caller's, as long as nobody else has taken it.
    is_callers = lease is not None and host.token != "" and lease.token == host.token
    return lease if age < LEASE or is_callers else None


def take_lease(
    host: Host, app: str, command: str, controller: dict[str, Any] | None, *, take_over: bool
) -> Lease | None:
    """Take the lease for host.token, or keep it; returns one that was taken over. To be called with the lock held."""
    if not take_over:
        refuse_beside_another(host, app)
    held = read_lease(host, app)
    is_ours = held is not None and held.token == host.token
    now = host.now()
    lease = held if held and is_ours else Lease(host.token, host.by, command, now, now, controller)
    _write_lease(host, app, replace(lease, heard=now))
    if held and not is_ours:
        host.log(app, "lock taken over", "ok", holder=held.holder, since=held.since, command=held.command)
        return held
    return None


def end_lease(host: Host, app: str, *, whose: str | None = None) -> Lease | None:
    """End the lease, if `whose` is its token or None; returns what was ended. To be called with the lock held."""
    held = read_lease(host, app)
    if held is None or (whose is not None and held.token != whose):
        return None
    host.layout.lease(app).unlink(missing_ok=True)
    return held


@contextmanager
def locked(host: Host, app: str, command: str, *, wait: bool = False, ignore_lease: bool = False) -> Iterator[None]:
    """Hold an app's lock; raises QuintetError naming the holder when another command, or another deploy, has it.

    `wait` waits for another command instead. With host.token the deploy of this token must be under way. `ignore_lease`
    is for what must not wait for a deploy: a drain, an undo whose time has come, the taking of a lease.
    """
    directory = host.layout.state(app)
    if not directory.is_dir() and not host.layout.app(app).is_dir():
        raise QuintetError(
            f"{app}: this host has no such app.",
            f"There is no {host.layout.app(app)}.",
            "See which apps are here with: quintet status",
        )
    if not ignore_lease:
        # Before the wait for its commands: the deploy is what an operator knows.
        refuse_beside_another(host, app)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / "lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if wait:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        elif not _acquire(host, descriptor):
            holder = read_json_object(path) or {}
            raise QuintetError(
                f"{app}: is being changed by {holder.get('holder', 'somebody')} since {holder.get('since', 'just now')}"
                f" (quintet {holder.get('command', '?')}, process {holder.get('pid', '?')}).",
                f"The lock is {path}.",
                f"Wait for it to end, look with `quintet status {app}`, then try again.",
            )
        if not ignore_lease:
            _show_token(host, app)
        holder = {"holder": host.by, "since": host.now(), "pid": os.getpid(), "command": command}
        os.ftruncate(descriptor, 0)
        # On a full disk the holder has no name, but what frees it must go on.
        with suppress(OSError):
            os.pwrite(descriptor, json.dumps(holder).encode() + b"\n", 0)
        try:
            yield
        finally:
            os.ftruncate(descriptor, 0)
            with suppress(OSError):
                _be_heard(host, app)
    finally:
        os.close(descriptor)


def _show_token(host: Host, app: str) -> None:
    """Refuse whoever is not the deploy that holds the lease, and let the one that is be heard of."""
    refuse_beside_another(host, app)
    if not _be_heard(host, app) and host.token:
        raise QuintetError(
            f"{app}: the lock of this deploy is gone.",
            "The host was started anew, somebody ended the lock, or it was not heard of for an hour.",
            f"Nothing was changed by this step. See quintet log {app}, then run the playbook again.",
        )


def _be_heard(host: Host, app: str) -> bool:
    """Renew the lease if it is the caller's; returns whether it is."""
    held = read_lease(host, app)
    if held is None or not host.token or held.token != host.token:
        return False
    _write_lease(host, app, replace(held, heard=host.now()))
    return True


def _write_lease(host: Host, app: str, lease: Lease) -> None:
    path = host.layout.lease(app)
    # The generations' sockets are beside it, so others must be able to pass.
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    path.parent.parent.chmod(0o755)
    path.parent.chmod(0o755)
    write_json(path, asdict(lease))


def refuse_beside_another(host: Host, app: str) -> None:
    """Raise QuintetError naming the deploy that holds the lease, unless it is the caller's own or there is none."""
    held = read_lease(host, app)
    if held and held.token != host.token:
        raise QuintetError(
            f"{app}: is being changed by {held}.",
            f"The lock is {host.layout.lease(app)}.",
            f"Wait for it to end. If that run is gone: quintet unlock {app}, or run the playbook with"
            " -e django_app_break_lock=true.",
        )


def _acquire(host: Host, descriptor: int) -> bool:
    deadline = host.clock.monotonic() + WAIT_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if host.clock.monotonic() >= deadline:
                return False
            host.clock.sleep(0.1)
        else:
            return True
