"""Seconds and remote tasks of a change and of the way back, on the demo's host without load.

    python benchmarks/changes.py [ROUNDS]

To be run beside `make demo`, with the tools of .venv first in PATH. ROUNDS times (default 5) it deploys another line of code by
playbooks/deploy.yml, then another environment variable, and goes back by playbooks/rollback.yml and by `quintet rollback`.
Prints for each the seconds from the start of the play (of the command, where there is none) until the rename of `current` and
until its end, and how many remote tasks there were; then the medians. Afterwards the demo is on hold at one of its changes:
`make demo-down`, or deploy it.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/site"))

from hosts import Host, counted_remote_tasks, play, wait_for  # noqa: E402  (found by the line above)

HOST = Host("quintet-demo")
INVENTORY = ROOT / "inventories/demo"
APP = "chat"
ROUNDS = 5


@dataclass(frozen=True)
class Figure:
    """What one command took."""

    until_switch: float
    seconds: float
    remote_tasks: int


def playbook(name: str, variables: dict[str, object], log: Path) -> float:
    """Run a playbook on the demo; returns when its play began, in seconds since the epoch. Ends the benchmark when it fails."""
    log.unlink(missing_ok=True)
    os.environ["ANSIBLE_LOG_PATH"] = str(log)
    arguments = ["--extra-vars", json.dumps({"app": APP, **variables})]
    played = play(f"playbooks/{name}.yml", *arguments, inventory=INVENTORY)
    if played.code:
        sys.exit(played.output)
    began = next(line for line in log.read_text().splitlines() if " PLAY [" in line)
    return datetime.strptime(began[:23], "%Y-%m-%d %H:%M:%S,%f").astimezone().timestamp()


def main() -> None:
    """Entry point."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    (described,) = yaml.safe_load((INVENTORY / "group_vars/all/apps.yml").read_text())["django_apps"]
    figures: dict[str, list[Figure]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        shutil.copytree(ROOT / "sample_app", directory / "sample_app")
        described["source"] = {"directory": str(directory / "sample_app")}

        def measure(what: str, command: str, *arguments: str, **variables: object) -> None:
            wait_for("drains to end", lambda: not any(one["draining"] for one in status()["generations"]))
            with counted_remote_tasks(directory) as count:
                began = time.time()
                if command == "quintet":
                    HOST.run("quintet", *arguments)
                else:
                    began = playbook(command, {"django_apps": [described], **variables}, directory / "log")
                ended = time.time()
                tasks = count()
            switched = float(HOST.run("stat", "-c", "%.9Z", f"/srv/{APP}/current"))
            figure = Figure(switched - began, ended - began, tasks)
            figures[what].append(figure)
            print(
                f"{what:<24} {figure.until_switch:5.1f} s to the switch {figure.seconds:5.1f} s in all {tasks:3} tasks",
                flush=True,
            )

        for number in range(rounds):
            (directory / "sample_app/chat/changed.py").write_text(f"ROUND = {time.time()}\n")
            measure("deploy: code", "deploy")
            described["environment"] = {"LOG_LEVEL": "INFO", "ROUND": f"{time.time()}"}
            measure("deploy: environment", "deploy")
            measure("rollback.yml", "rollback")
            (before,) = [one for one in status()["generations"] if one["generation"] == status()["previous"]]
            measure("quintet rollback", "quintet", "rollback", APP, before["generation"])
            print(f"round {number + 1} of {rounds} done", flush=True)
    for what, taken in figures.items():
        until, seconds = (
            statistics.median(getattr(one, name) for one in taken) for name in ("until_switch", "seconds")
        )
        print(
            f"{what:<24} median {until:.1f} s to the switch, {seconds:.1f} s in all, {taken[-1].remote_tasks} remote tasks"
        )


def status() -> dict[str, Any]:
    """Return what the host command says of the app."""
    app: dict[str, Any] = HOST.quintet("status", APP)["apps"][0]
    return app


if __name__ == "__main__":
    main()
