"""All that `quintet` asks of systemd."""

import os
import subprocess
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO

from quintet_host.errors import QuintetError

# Units have their own time limits, of at most 50 minutes; this one only keeps a stuck bus from holding the lock for ever.
COMMAND_TIMEOUT_SECONDS = 3600

# What is kept of a command's output.
KEPT_LINES = 200
LINE_BYTES = 262144


@dataclass(frozen=True)
class Answer:
    """How a command ended and what it said."""

    ok: bool
    said: str = ""


@dataclass(frozen=True)
class Captured:
    """How a transient service ended: its exit code, its last lines, and systemd's word: success, exit-code, timeout…"""

    code: int
    lines: tuple[str, ...]
    result: str


class System:
    """The host's systemd; tests put another in its place."""

    def start(self, units: Sequence[str]) -> Answer:
        """Start units and wait until they are ready or have failed."""
        return self._run(["systemctl", "start", "--", *units])

    def stop(self, units: Sequence[str]) -> Answer:
        """Stop units, as one transaction, and wait for them."""
        return self._run(["systemctl", "stop", "--", *units])

    def restart(self, units: Sequence[str]) -> Answer:
        """Stop units and start them again, and wait until they are ready or have failed."""
        return self._run(["systemctl", "restart", "--", *units])

    def reset_failed(self, units: Sequence[str]) -> None:
        """Forget earlier failures and their start limits; units that systemd does not know are passed over."""
        for unit in units:
            self._run(["systemctl", "reset-failed", "--", unit])

    def reload(self) -> Answer:
        """Let systemd read unit files again."""
        return self._run(["systemctl", "daemon-reload"])

    def states(self, units: Iterable[str]) -> dict[str, str]:
        """Return each unit's active state: active, activating, deactivating, failed, inactive; raises QuintetError."""
        wanted = list(dict.fromkeys(units))
        if not wanted:
            return {}
        done = self._process(["systemctl", "is-active", "--", *wanted])
        lines = done.stdout.split()
        if len(lines) != len(wanted):
            raise QuintetError(
                f"systemd did not say how {', '.join(wanted)} are.",
                f"It said: {(done.stderr or done.stdout).strip() or 'nothing'}",
                "See that systemctl works (systemctl is-system-running), then try again.",
            )
        return dict(zip(wanted, lines, strict=True))

    def statuses(self, units: Iterable[str]) -> dict[str, str]:
        """Return what services say of themselves, of those that do."""
        wanted = list(dict.fromkeys(units))
        if not wanted:
            return {}
        said = self._output(["systemctl", "show", "--property=Id", "--property=StatusText", "--", *wanted])
        shown = [dict(line.partition("=")[::2] for line in block.splitlines()) for block in said.split("\n\n")]
        return {one["Id"]: one["StatusText"] for one in shown if one.get("StatusText")}

    def is_any_active(self, pattern: str) -> bool:
        """Say whether a unit whose name matches a pattern is doing anything."""
        options = ["--plain", "--no-legend", "--state=active,activating,deactivating,reloading"]
        return self._output(["systemctl", "list-units", *options, "--", pattern]).strip() != ""

    def make_directories(self, configuration: Path) -> Answer:
        """Create what a tmpfiles.d file describes."""
        return self._run(["systemd-tmpfiles", "--create", str(configuration)])

    def journal(self, units: Sequence[str], since: datetime, lines: int = 60) -> list[str]:
        """Return the last lines that units logged since a moment; Gunicorn needs 40 to say why a worker did not boot."""
        # A busy host's journal is behind with just the lines that tell why.
        self._run(["journalctl", "--sync"])
        # Without --lines: beside --since, systemd 252 takes it for the first lines.
        command = ["journalctl", "--quiet", "--no-pager", "--output=short-iso"]
        command += [f"--since=@{int(since.timestamp())}", *(f"--unit={unit}" for unit in units)]
        return self._output(command).splitlines()[-lines:]

    def reload_nginx(self) -> Answer:
        """Let Nginx read its configuration again, if it runs; one that is being started has its start awaited."""
        return self._run(["systemctl", "try-reload-or-restart", "nginx.service"])

    def run_detached(self, unit: str, description: str, command: Sequence[str], *, restart: bool = False) -> Answer:
        """Run a command as a transient service of its own, which outlives this process; with `restart` until it succeeds."""
        options = ["--quiet", "--collect", f"--unit={unit}", f"--description={description}"]
        if restart:
            options += [
                "--property=Restart=on-failure",
                "--property=RestartSec=1s",
                "--property=StartLimitIntervalSec=0",
            ]
        return self._run(["systemd-run", *options, "--", *command])

    def run_later(self, unit: str, description: str, seconds: float, command: Sequence[str]) -> Answer:
        """Have a command run in so many seconds by a transient timer and service, whatever becomes of this process."""
        options = ["--quiet", "--collect", f"--unit={unit}", f"--description={description}", f"--on-active={seconds}s"]
        # Once more where it failed; what has done its work stops the timer.
        options += ["--timer-property=AccuracySec=1s", "--timer-property=OnUnitInactiveSec=60s"]
        return self._run(["systemd-run", *options, "--", *command])

    def restarts(self, units: Sequence[str]) -> dict[str, int]:
        """Return how often systemd has restarted each service since it was started by somebody."""
        counts = {}
        for unit in units:
            text = self._output(["systemctl", "show", "--property=NRestarts", "--value", "--", unit]).strip()
            counts[unit] = int(text) if text.isdigit() else 0
        return counts

    def run_attached(self, options: Sequence[str], command: Sequence[str]) -> int:
        """Run a command as a transient service on this terminal or these pipes; returns its exit code."""
        kept = {name: os.environ[name] for name in ("TERM", "COLORTERM") if name in os.environ}
        # Newer systemds would tint the terminal and change its title.
        plain = {"SYSTEMD_TINT_BACKGROUND": "0", "SYSTEMD_ADJUST_TERMINAL_TITLE": "0"}
        environment = _environment() | kept | plain
        return subprocess.run(["systemd-run", *options, "--", *command], env=environment, check=False).returncode

    def flush(self) -> None:
        """Write everything in memory to the disks."""
        os.sync()

    def run_captured(
        self,
        unit: str,
        options: Sequence[str],
        command: Sequence[str],
        *,
        stdin: IO[bytes] | None = None,
        stdout: IO[bytes] | None = None,
        heard: Callable[[str], None] | None = None,
    ) -> Captured:
        """Run a command as a transient service and keep its last lines; an interruption here stops it.

        They are those of both streams, or of standard error alone when `stdout` takes the other.
        """
        output, inlet = os.pipe()
        process = subprocess.Popen(
            ["systemd-run", *options, f"--unit={unit}", "--", *command],
            env=_environment(),
            stdin=stdin or subprocess.DEVNULL,
            stdout=stdout or inlet,
            stderr=inlet,
        )
        os.close(inlet)
        lines: deque[str] = deque(maxlen=KEPT_LINES)
        try:
            with os.fdopen(output, "rb") as stream:
                while part := stream.readline(LINE_BYTES):
                    lines.append(part.decode(errors="replace").rstrip())
                    if heard:
                        heard(lines[-1])
            code = process.wait()
        except BaseException:
            self.stop([unit])
            process.kill()
            process.wait()
            raise
        # A failed service stays in systemd's memory until it is forgotten; of one that went well nothing is left.
        result = self._output(["systemctl", "show", "--property=Result", "--value", "--", unit]).strip()
        self.reset_failed([unit])
        return Captured(code, tuple(lines), result)

    def _output(self, command: Sequence[str]) -> str:
        return self._process(command).stdout

    def _run(self, command: Sequence[str]) -> Answer:
        done = self._process(command)
        return Answer(done.returncode == 0, (done.stderr or done.stdout).strip())

    def _process(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                command,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=COMMAND_TIMEOUT_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return subprocess.CompletedProcess(command, 1, "", str(error))


def _environment() -> dict[str, str]:
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
