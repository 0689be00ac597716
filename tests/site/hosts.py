"""What the tests of a running site share: hosts, requests through the front door, and runs of playbooks."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from websockets import Origin
from websockets.sync.client import ClientConnection, connect

ROOT = Path(__file__).resolve().parents[2]
# What asks a host which packages it has, without a module: plugins/action/install_packages.py.
LOOK = "apt-mark showmanual"
WAIT_SECONDS = 60.0
# For so long an address is good: the engine may give a host another one when it restarts, but to ask takes longer than a request.
ADDRESS_SECONDS = 2.0


@cache
def address(name: str, period: int) -> str:
    """Return the address of a container in a period of ADDRESS_SECONDS."""
    done = subprocess.run(
        ["docker", "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", name],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@dataclass(frozen=True)
class Host:
    """A test host by the name of its container."""

    name: str

    def run(self, *command: str, check: bool = True, user: str = "root", stdin: str | None = None) -> str:
        """Run a command on the host and return what it prints; raises AssertionError when it fails."""
        done = subprocess.run(
            ["docker", "exec", "--interactive", "--user", user, self.name, *command],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert not check or done.returncode == 0, f"{self.name}: {' '.join(command)}\n{done.stdout}{done.stderr}"
        return done.stdout + ("" if check else done.stderr)

    def fails(self, *command: str, user: str = "root") -> bool:
        """Say whether a command ends with an error; raises AssertionError when it could not be run at all."""
        done = subprocess.run(
            ["docker", "exec", "--user", user, self.name, *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        # No such command, user or host says nothing about the command; for the last the engine's own code is 1.
        unable = done.returncode in (125, 126, 127) or done.stderr.startswith("Error response from daemon")
        assert not unable, f"{self.name}: {' '.join(command)}\n{done.stdout}{done.stderr}"
        return done.returncode != 0

    @property
    def address(self) -> str:
        """The host's IPv4 address on the engine's network."""
        return address(self.name, int(time.monotonic() / ADDRESS_SECONDS))

    def quintet(self, *arguments: str) -> dict[str, Any]:
        """Call the host command with --json and return its answer."""
        answer: dict[str, Any] = json.loads(self.run("quintet", *arguments, "--json"))
        return answer

    def current(self, app: str) -> str:
        """Return the id of an app's current generation."""
        generation: str = self.quintet("status", app)["apps"][0]["current"]
        return generation

    def processes(self, pattern: str) -> set[int]:
        """Return the main processes of the active services that match a pattern of unit names."""
        listed = self.run(
            "systemctl", "show", "--property=MainPID", "--value", "--state=active", "--type=service", pattern
        )
        return {int(line) for line in listed.split() if line.isdigit() and line != "0"}


@dataclass(frozen=True)
class Answer:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    body: str

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


@dataclass
class Site:
    """One domain on one host, as a browser sees it."""

    host: Host
    domain: str
    cookies: dict[str, str] = field(default_factory=dict)

    def request(self, method: str, path: str, body: str | None = None, headers: dict[str, str] | None = None) -> Answer:
        """Send one request through Nginx and keep its cookies."""
        connection = http.client.HTTPConnection(self.host.address, 80, timeout=30)
        sent = {"Host": self.domain, **(headers or {})}
        if self.cookies:
            sent["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        connection.request(method, path, body=body, headers=sent)
        response = connection.getresponse()
        text = response.read().decode(errors="replace")
        for value in response.headers.get_all("Set-Cookie") or []:
            name, _, rest = value.partition("=")
            self.cookies[name] = rest.split(";")[0]
        connection.close()
        return Answer(response.status, {key.lower(): value for key, value in response.headers.items()}, text)

    def get(self, path: str, headers: dict[str, str] | None = None) -> Answer:
        """Send a GET."""
        return self.request("GET", path, headers=headers)

    def websocket(self, path: str, origin: str | None = "", **options: Any) -> ClientConnection:
        """Open a WebSocket through Nginx; the site's own origin unless another, or None, is given."""
        cookies = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        return connect(
            f"ws://{self.domain}{path}",
            sock=socket.create_connection((self.host.address, 80), timeout=30),
            origin=Origin(f"http://{self.domain}" if origin == "" else origin) if origin is not None else None,
            additional_headers={"Cookie": cookies} if cookies else {},
            compression=None,
            open_timeout=30,
            legacy=True,  # returns the connection itself, for tests that hold several
            **options,
        )


def loaded(host: Host, *patterns: str) -> list[str]:
    """Return the loaded services of some patterns, running or not."""
    listed = host.run("systemctl", "list-units", "--all", "--plain", "--no-legend", "--type=service", *patterns)
    return [line.split()[0] for line in listed.splitlines()]


@contextmanager
def running(host: Host, pattern: str, *command: str) -> Iterator[str]:
    """Run a command that makes a transient unit; yields the unit's name while it runs, then ends it."""
    with subprocess.Popen(["docker", "exec", host.name, *command], stderr=subprocess.PIPE, text=True) as process:
        wait_for(f"{pattern} on {host.name}", lambda: bool(loaded(host, pattern)) or process.poll() is not None)
        assert process.poll() is None, process.stderr and process.stderr.read()
        (unit,) = loaded(host, pattern)
        try:
            yield unit
        finally:
            host.run("systemctl", "stop", unit)


def managing(host: Host, app: str) -> AbstractContextManager[str]:
    """Have `quintet manage` of an app run for up to a minute; gives its unit's name."""
    wait = "import time; time.sleep(60)"
    return running(host, f"quintet-manage-{app}-*.service", "quintet", "manage", app, "shell", "-c", wait)


# Runs a hook by the host command's own code, without the deploy around it.
HOOK = """
import sys
sys.path.insert(0, "/usr/local/lib/quintet")
from dataclasses import replace
from quintet_host import hooks
from quintet_host.generation import Hook, load
from quintet_host.host import Host
host, app = Host(), sys.argv[1]
generation = load(host.layout, app, host.layout.current_id(app))
hooks.run(host, replace(generation, hooks={"before_switch": (Hook("", "sleep 60", 60),)}), "before_switch")
"""


def hooking(host: Host, app: str) -> AbstractContextManager[str]:
    """Have a hook of an app run for up to a minute; gives its unit's name."""
    return running(host, f"quintet-hook-{app}.service", "python3", "-c", HOOK, app)


def receive(connection: ClientConnection, wanted: str, timeout: float = 20) -> dict[str, Any]:
    """Return the next message of a type, passing over others."""
    end = time.monotonic() + timeout
    while True:
        message: dict[str, Any] = json.loads(connection.recv(timeout=max(0.1, end - time.monotonic())))
        if message["type"] == wanted:
            return message


def wait_for(what: str, condition: Callable[[], bool], seconds: float = WAIT_SECONDS) -> float:
    """Wait until a condition holds; returns how many seconds it took, raises AssertionError when it doesn't come."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"waited {seconds:.0f} s in vain: {what}"
        time.sleep(0.2)
    return time.monotonic() - start


@contextmanager
def counted_remote_tasks(directory: Path) -> Iterator[Callable[[], int]]:
    """Count what Ansible runs on hosts meanwhile; yields a function that returns the number so far.

    A `docker` in `directory` comes before the real one and notes each call: a task with pipelining is one call of Python,
    or the look for packages.
    """
    real = shutil.which("docker")
    directory.mkdir(exist_ok=True)
    log, shim = directory / "calls", directory / "docker"
    log.write_text("")
    shim.write_text(f'#!/bin/sh\necho "$*" | head -c 300 | tr "\\n" " " >> {log}\necho >> {log}\nexec {real} "$@"\n')
    shim.chmod(shim.stat().st_mode | stat.S_IXUSR)

    def count() -> int:
        calls = [line for line in log.read_text().splitlines() if " exec " in f" {line}"]
        return sum("python" in line or LOOK in line for line in calls)

    path = os.environ["PATH"]
    os.environ["PATH"] = f"{directory}{os.pathsep}{path}"
    try:
        yield count
    finally:
        os.environ["PATH"] = path


@contextmanager
def full(host: Host, path: str, free: int = 0) -> Iterator[None]:
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
    host.run("sh", "-euc", script)
    try:
        yield
    finally:
        host.run("sh", "-c", f"umount {path} && umount {over}")


@dataclass(frozen=True)
class Played:
    """How a run of a playbook ended."""

    code: int
    output: str

    @property
    def text(self) -> str:
        """The output without line breaks and without the doubled quotes of YAML, in which Ansible shows messages."""
        return re.sub(r"\s+", " ", self.output.replace("''", "'"))

    def count(self, host: str, what: str) -> int:
        """Return a number of the recap, for example changed."""
        found = re.search(rf"^{re.escape(host)}\s+:.*\b{what}=(\d+)", self.output, re.MULTILINE)
        assert found, f"no recap of {host}:\n{self.output[-4000:]}"
        return int(found.group(1))

    @property
    def changed(self) -> int:
        """Changed tasks on all hosts."""
        return sum(int(number) for number in re.findall(r"\bchanged=(\d+)", self.output))

    @property
    def changed_tasks(self) -> str:
        """The names of the changed tasks, for a message."""
        tasks, name = [], ""
        for line in self.output.splitlines():
            if line.startswith("TASK ["):
                name = line
            elif line.startswith("changed:"):
                tasks.append(f"{name} {line}")
        return "\n".join(tasks)


def play(playbook: str, *arguments: str, inventory: Path | None = None, cwd: Path = ROOT) -> Played:
    """Run a playbook with the scenario's inventory, as a user would."""
    where = inventory or Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "inventory"
    done = subprocess.run(
        ["ansible-playbook", "-i", str(where), playbook, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
        env={**os.environ, "ANSIBLE_FORCE_COLOR": "false", "ANSIBLE_NOCOLOR": "true"},
    )
    return Played(done.returncode, done.stdout + done.stderr)


def play_well(playbook: str, *arguments: str) -> Played:
    """Run a playbook that must succeed."""
    played = play(playbook, *arguments)
    assert played.code == 0, played.output[-6000:]
    return played
