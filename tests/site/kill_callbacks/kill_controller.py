"""A callback that kills its own ansible-playbook, as a lost controller would end it: all processes at once, with SIGKILL.

KILL_TASKS names a file: each task that starts is added to it, and what it did (`ok`, `changed`, `skipped`, `failed`) once it has ended.
KILL_AT is the number of the task (from 1) or its name, at whose start the run is killed; KILL_AFTER waits so many seconds before that.
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: kill_controller
type: aggregate
short_description: Kills the run at a task
description: Kills all processes of the run at the start of a task.
"""


def descendants(process: int) -> list[int]:
    """Return the processes that a process has started, and theirs; Ansible gives its workers groups of their own."""
    found = []
    for task in Path(f"/proc/{process}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found += [child, *descendants(child)]
    return found


def kill() -> None:
    """End this run and all that it has started on this machine."""
    for process in descendants(os.getpid()):
        os.kill(process, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


class CallbackModule(CallbackBase):
    """Counts tasks, and kills."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "kill_controller"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self.tasks = Path(os.environ["KILL_TASKS"])
        self.at = os.environ.get("KILL_AT", "")
        self.after = float(os.environ.get("KILL_AFTER", "0"))
        self.number = 0

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """Write the task down, and kill the run if this is the one."""
        self.number += 1
        self._write("start", str(task.action), task.get_name())
        if self.at in (str(self.number), task.name):
            if self.after:
                threading.Timer(self.after, kill).start()
            else:
                kill()

    def v2_runner_on_ok(self, result: Any) -> None:
        """Write down how it ended."""
        self._write("changed" if result.is_changed() else "ok")

    def v2_runner_on_skipped(self, result: Any) -> None:
        """Write down that there was nothing to do."""
        self._write("skipped")

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Write down that it failed."""
        self._write("failed")

    def _write(self, *words: str) -> None:
        with self.tasks.open("a") as file:
            file.write("\t".join([str(self.number), *words]) + "\n")
