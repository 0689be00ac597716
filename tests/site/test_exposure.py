"""What systemd says of each unit's sandbox, on both systems, as it is loaded on the host."""

from __future__ import annotations

import re
import sys

import pytest
from hosts import Host, hooking, loaded, managing

HOSTS = [Host("quintet-intruder-bookworm"), Host("quintet-intruder-trixie")]
MOST = 1.5
# Of what serves them: a tenth above what docs/hardening.md says, so that a directive that is lost is seen.
MOST_OF = {"nginx.service": 2.7, "postgresql@*-main.service": 2.7, "redis-chat.service": 0.5}
# Kinds of units of the app that must be among what was looked at.
KINDS = {"daphne-chat-1", "daphne-chat-2", "gunicorn-chat", "gunicorn-plain", "timer-plain-idle", "worker-plain-idle-1"}
# All that systemd finds open in them: an app speaks to people and to other services, Nginx reads its media, and of Gunicorn a worker
# says that it is ready. By name, since without most directives the figure would still be below what is promised.
OPEN = {
    "RootDirectory=/RootImage=",
    "RestrictAddressFamilies=~AF_UNIX",
    "RestrictAddressFamilies=~AF_(INET|INET6)",
    "PrivateNetwork=",
    "IPAddressDeny=",
    "DeviceAllow=",
    "UMask=",
    "NotifyAccess=",
}
PATTERNS = [
    "gunicorn-*@*.service",
    "daphne-*@*.service",
    "worker-*@*.service",
    "timer-*@*.service",
]


def looked_at(host: Host, unit: str) -> str:
    """Return what systemd says of a loaded unit's sandbox."""
    return host.run("systemd-analyze", "security", "--no-pager", unit)


def exposure(said: str) -> float:
    """Return the figure of it."""
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert found, said
    return float(found.group(1))


def open_directives(said: str) -> set[str]:
    """Return what it finds open."""
    assert "✓" in said
    return set(re.findall(r"^✗ (\S+)", said, re.MULTILINE))


@pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.name)
class TestExposure:
    def test_of_each_unit_of_the_apps_is_at_most_what_is_promised(self, host: Host) -> None:
        # A job is loaded while somebody asks for it.
        for timer in host.run("sh", "-c", "ls /srv/plain/current/units").split():
            if re.fullmatch(r"timer-.*\.service", timer):
                host.run("systemctl", "start", "--no-block", timer)
        said = {unit: looked_at(host, unit) for unit in loaded(host, *PATTERNS)}
        with managing(host, "plain") as unit:
            said["quintet manage"] = looked_at(host, unit)
        with hooking(host, "plain") as unit:
            said["hook"] = looked_at(host, unit)
        found = {unit: exposure(text) for unit, text in said.items()}
        for unit, value in found.items():
            print(f"\n{host.name}: {unit}: {value}", end="", file=sys.stdout)
        assert {unit.partition("@")[0].removesuffix(".service") for unit in found} >= KINDS | {"quintet manage", "hook"}
        assert {unit: value for unit, value in found.items() if value > MOST} == {}
        assert {unit: more for unit, text in said.items() if (more := open_directives(text) - OPEN)} == {}

    @pytest.mark.parametrize("pattern", MOST_OF)
    def test_of_what_serves_the_apps_is_as_the_documentation_says(self, host: Host, pattern: str) -> None:
        (unit,) = loaded(host, pattern)
        value = exposure(looked_at(host, unit))
        print(f"\n{host.name}: {unit}: {value}")
        assert value <= MOST_OF[pattern]

    @pytest.mark.parametrize("pattern", MOST_OF)
    def test_what_runs_was_started_with_that_sandbox(self, host: Host, pattern: str) -> None:
        (unit,) = loaded(host, pattern)
        main = host.run("systemctl", "show", "--property=MainPID", "--value", unit).strip()
        status = dict(line.split(":", 1) for line in host.run("cat", f"/proc/{main}/status").splitlines())
        assert status["NoNewPrivs"].strip() == "1"
        assert status["Seccomp"].strip() == "2"
        # Neither may mount, load modules, trace, or set clocks.
        assert int(status["CapBnd"], 16) & sum(1 << number for number in (16, 17, 19, 21, 25)) == 0
