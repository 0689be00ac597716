"""One change of an app at a time."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager

from quintet_host.errors import QuintetError
from quintet_host.files import read_json_object
from quintet_host.host import Host

# Long enough for a drain's short look at `current`, short enough for an operator.
WAIT_SECONDS = 2.0


@contextmanager
def locked(host: Host, app: str, command: str, *, wait: bool = False) -> Iterator[None]:
    """Hold an app's lock; raises QuintetError naming the holder when another has it, unless told to wait for it."""
    directory = host.layout.state(app)
    if not directory.is_dir() and not host.layout.app(app).is_dir():
        raise QuintetError(
            f"{app}: this host has no such app.",
            f"There is no {host.layout.app(app)}.",
            "See which apps are here with: quintet status",
        )
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
        holder = {"holder": host.by, "since": host.now(), "pid": os.getpid(), "command": command}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode() + b"\n", 0)
        try:
            yield
        finally:
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


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
