# Copyright (c) 2026 The Quintet authors
# MIT License (see LICENSE)
"""Who runs this: the name for logs, and the process, so that a later run can see that it is gone."""

from __future__ import annotations

import getpass
import multiprocessing
import os
import platform
from pathlib import Path
from typing import Any

Identity = dict[str, Any]


def who() -> str:
    """Return user@machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a number without a name
        user = str(os.getuid())
    return f"{user}@{platform.node()}"


def identity(proc: Path = Path("/proc"), etc: Path = Path("/etc")) -> Identity | None:
    """Return what tells ansible-playbook's main process from all others, None where there is no /proc.

    `host`, `boot` and `pid_namespace` are texts, `pid` a number, and `started` is in clock ticks since the boot.
    """
    parent = multiprocessing.parent_process()
    pid = parent.pid if parent is not None and parent.pid else os.getpid()
    started = start_time(pid, proc)
    try:
        machine = (etc / "machine-id").read_text().strip()
    except OSError:
        machine = ""
    try:
        return {
            "host": f"{platform.node()}/{machine}",
            "boot": (proc / "sys/kernel/random/boot_id").read_text().strip(),
            "pid_namespace": str((proc / "self/ns/pid").readlink()),
            "pid": pid,
            "started": started,
        }
    except OSError:
        return None


def start_time(pid: int, proc: Path = Path("/proc")) -> int | None:
    """Return when a process started, in clock ticks since the boot (proc(5), field 22 of stat); None when there is none."""
    try:
        # The name, in parentheses, may hold anything.
        fields = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return int(fields[19])
    except (OSError, IndexError, ValueError):
        return None


def is_gone(recorded: Any, proc: Path = Path("/proc"), etc: Path = Path("/etc")) -> bool:
    """Say whether the process of a recorded identity is certainly gone; False for what can't be seen from here."""
    own = identity(proc, etc)
    if own is None or not isinstance(recorded, dict) or set(recorded) != set(own):
        return False
    if recorded["boot"] != own["boot"]:
        # Started again since: but only where it is surely the same machine.
        return bool(recorded["host"] == own["host"] and not own["host"].endswith("/"))
    if recorded["pid_namespace"] != own["pid_namespace"]:
        return False
    return bool(start_time(recorded["pid"], proc) != recorded["started"])
