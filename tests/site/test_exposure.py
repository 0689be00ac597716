"""What systemd says of each unit's sandbox, on both systems, as it is loaded on the host."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hosts import Host, wait_for

HOSTS = [Host("quintet-intruder-bookworm"), Host("quintet-intruder-trixie")]
MOST = 1.5
# Of what is not ours: see docs/hardening.md for what it was before.
MOST_OF = {"nginx": 3.0, "postgresql": 3.5}
# Kinds of units of the app that must be among what was looked at.
KINDS = {"daphne-chat-1", "daphne-chat-2", "gunicorn-chat", "gunicorn-plain", "redis-chat", "timer-plain-idle"}
KINDS |= {"worker-plain-idle-1"}
PATTERNS = [
    "gunicorn-*@*.service",
    "daphne-*@*.service",
    "worker-*@*.service",
    "timer-*@*.service",
    "redis-chat.service",
]

# Runs a hook by the host command's own code, without the deploy around it.
HOOK = """
import sys
sys.path.insert(0, "/usr/local/lib/quintet")
from dataclasses import replace
from quintet_host import hooks
from quintet_host.generation import Hook, load
from quintet_host.host import Host
host = Host()
generation = load(host.layout, "plain", host.layout.current_id("plain"))
hooks.run(host, replace(generation, hooks={"before_switch": (Hook("", "sleep 60", 60),)}), "before_switch")
"""


def exposure(host: Host, unit: str) -> float:
    """Return systemd's own figure for a loaded unit."""
    said = host.run("systemd-analyze", "security", "--no-pager", unit)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert found, said
    return float(found.group(1))


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


@pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.name)
class TestExposure:
    def test_of_each_unit_of_the_apps_is_at_most_what_is_promised(self, host: Host) -> None:
        # A job is loaded while somebody asks for it.
        for timer in host.run("sh", "-c", "ls /srv/plain/current/units").split():
            if re.fullmatch(r"timer-.*\.service", timer):
                host.run("systemctl", "start", "--no-block", timer)
        found = {unit: exposure(host, unit) for unit in loaded(host, *PATTERNS)}
        with running(host, "quintet-manage-plain-*.service", "quintet", "manage", "plain", "shell", "-c", WAIT) as unit:
            found["quintet manage"] = exposure(host, unit)
        with running(host, "quintet-hook-plain.service", "python3", "-c", HOOK) as unit:
            found["hook"] = exposure(host, unit)
        for unit, value in found.items():
            print(f"\n{host.name}: {unit}: {value}", end="", file=sys.stdout)
        assert {unit.partition("@")[0].removesuffix(".service") for unit in found} >= KINDS | {"quintet manage", "hook"}
        assert {unit: value for unit, value in found.items() if value > MOST} == {}

    @pytest.mark.parametrize("name", MOST_OF)
    def test_of_what_serves_the_apps_is_as_the_documentation_says(self, host: Host, name: str) -> None:
        (unit,) = loaded(host, "nginx.service") if name == "nginx" else loaded(host, "postgresql@*-main.service")
        value = exposure(host, unit)
        print(f"\n{host.name}: {unit}: {value}")
        assert value <= MOST_OF[name]

    @pytest.mark.parametrize("name", MOST_OF)
    def test_what_runs_was_started_with_that_sandbox(self, host: Host, name: str) -> None:
        (unit,) = loaded(host, "nginx.service") if name == "nginx" else loaded(host, "postgresql@*-main.service")
        main = host.run("systemctl", "show", "--property=MainPID", "--value", unit).strip()
        status = dict(line.split(":", 1) for line in host.run("cat", f"/proc/{main}/status").splitlines())
        assert status["NoNewPrivs"].strip() == "1"
        assert status["Seccomp"].strip() == "2"
        # Neither may mount, load modules, trace, or set clocks.
        assert int(status["CapBnd"], 16) & sum(1 << number for number in (16, 17, 19, 21, 25)) == 0


WAIT = "import time; time.sleep(60)"
