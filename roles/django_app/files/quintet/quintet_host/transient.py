"""Running a command as a generation's servers run: same user, environment, credentials, sandbox, directory."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from quintet_host.errors import QuintetError
from quintet_host.generation import Generation
from quintet_host.host import Host
from quintet_host.units import STOPPED

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# What systemd refuses in the value of a variable.
CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
# Between the request to end and the kill.
STOP_SECONDS = 30


@dataclass(frozen=True)
class Result:
    """How a command ended: its exit code, its last lines, and whether its time was up."""

    code: int
    output: str
    timed_out: bool

    @property
    def ok(self) -> bool:
        """Whether the command did its work."""
        return self.code == 0 and not self.timed_out


def unit(name: str, app: str) -> str:
    """Return the unit in which `run` runs a command."""
    return f"quintet-{name}-{app}.service"


def run(
    host: Host,
    generation: Generation,
    command: Sequence[str],
    *,
    name: str,
    timeout_seconds: float | None,
    environment: Mapping[str, str] | None = None,
    stdin: IO[bytes] | None = None,
    stdout: IO[bytes] | None = None,
    heard: Callable[[str], None] | None = None,
) -> Result:
    """Run a command and wait for it, with no time limit if that is None.

    The output is what it wrote to both streams, or to standard error alone when `stdout` takes the other; `heard` is
    told each line as it comes. Raises QuintetError while an earlier one of this `name` still runs for the app.
    """
    service = unit(name, generation.app)
    host.system.reset_failed([service])
    if host.system.states([service])[service] not in STOPPED:
        # Its caller was killed; what it does must not be done twice at the same time.
        raise QuintetError(
            f"{generation.app}: an earlier {name} still runs.",
            f"See: systemctl status {service}",
            f"Wait for it to end, or end it with: systemctl stop {service}; then try again.",
        )
    options = ["--quiet", "--wait", "--service-type=exec", "--pipe", f"--description={name} of {generation.app}"]
    options += [*_options(generation, environment or {}), f"--property=TimeoutStopSec={STOP_SECONDS}"]
    if timeout_seconds is not None:
        options += [f"--property=RuntimeMaxSec={timeout_seconds:g}"]
    done = host.system.run_captured(service, options, _words(command), stdin=stdin, stdout=stdout, heard=heard)
    return Result(done.code, "\n".join(done.lines), done.result == "timeout")


def attach(host: Host, generation: Generation, command: Sequence[str], *, name: str, terminal: bool) -> int:
    """Run a command on this terminal or these pipes; returns its exit code. Any number may run at the same time."""
    options = ["--quiet", "--collect", "--wait", "--service-type=exec", "--pty" if terminal else "--pipe"]
    # With the generation's id, so that it counts as in use.
    options += [f"--unit=quintet-{name}-{generation.app}-{generation.identifier}-{os.getpid()}.service"]
    options += [f"--description={name} of {generation.app}", *_options(generation, {})]
    return host.system.run_attached(options, _words(command))


def _options(generation: Generation, environment: Mapping[str, str]) -> list[str]:
    properties = [
        f"User={generation.user}",
        f"Group={generation.group}",
        f"WorkingDirectory={generation.path}/src",
        # Lines of a unit file, where %% is a percent sign; systemd-run takes values as they are.
        *(line.replace("%%", "%") for line in generation.properties),
    ]
    variables = {"PATH": f"{generation.path}/venv/bin:{SYSTEM_PATH}", **environment}
    return [
        *(f"--property={line}" for line in properties),
        *(f"--setenv={name}={CONTROL_CHARACTERS.sub(' ', value)}" for name, value in variables.items()),
    ]


def _words(command: Sequence[str]) -> list[str]:
    # systemd expands $NAME in a command unless the dollar sign is doubled.
    return [word.replace("$", "$$") for word in command]
