"""An app that is changed, with faults when asked for, on the host of a scenario of its own (faults; deploy, for what it loses)."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hosts import ROOT, Host, Played, Site, play, receive
from websockets.exceptions import WebSocketException

HOST = Host(f"quintet-{os.environ.get('MOLECULE_SCENARIO_NAME', 'faults')}")
APP = "chat"
SITE = Site(HOST, "chat.test")
# As in the scenario's group_vars.
WORKERS = 2
SOURCE = Path(os.environ.get("MOLECULE_EPHEMERAL_DIRECTORY", "/nonexistent")) / "sample_app"
KILLS_FILE = SOURCE.parent / "tasks"
FAULTS = {
    "boot": ["Step: start", "RuntimeError: this generation does not boot"],
    "websocket": ["Step: probe", "failed the probe 'websocket /ws/health/'", "got 403 instead of 101"],
    "hook": ["Step: before_switch", "look once more"],
    "worker": ["Step: workers", "RuntimeError: this worker dies"],
    "edge": ["Step: edge", "GET /healthz through 127.0.0.1:80: got 503 not through Nginx instead of 200"],
}


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


def main_process(unit: str) -> int:
    return int(HOST.run("systemctl", "show", "--property=MainPID", "--value", unit))


def children(process: int) -> set[int]:
    return {int(child) for child in HOST.run("cat", f"/proc/{process}/task/{process}/children").split()}


def gunicorn() -> int:
    return main_process(f"gunicorn-{APP}@{HOST.current(APP)}.service")


def deploy(**variables: object) -> Played:
    """Deploy the app, with more variables."""
    return play("playbooks/deploy.yml", "--extra-vars", json.dumps({"app": APP, **variables}))


def deploy_well(**variables: object) -> str:
    """Deploy the app, which must succeed; returns the generation that serves then."""
    played = deploy(**variables)
    assert played.code == 0, played.output[-6000:]
    return serving()


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


def change_code() -> None:
    """Change a line of code that does nothing."""
    (SOURCE / "faults/change.py").write_text(f"CHANGE = {uuid.uuid4().hex!r}\n")


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


def earlier_good() -> str:
    """Return the good generation before the one that serves; it is made on a host that has none yet."""
    if status()["previous"] is None:
        change_code()
        deploy_well()
    return str(status()["previous"])


def runs(generation: str) -> bool:
    """Say whether any unit of a generation runs."""
    return not {"inactive", "failed", "unknown"} >= set(generations()[generation]["units"].values())


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
