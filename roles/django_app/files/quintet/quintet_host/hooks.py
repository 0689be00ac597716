"""The app's own commands at named moments of a change."""

from collections.abc import Mapping

from quintet_host import transient
from quintet_host.errors import QuintetError
from quintet_host.generation import Generation
from quintet_host.host import Host

SHOWN_LINES = 20


def run(host: Host, generation: Generation, moment: str, environment: Mapping[str, str] | None = None) -> None:
    """Run a generation's hooks of a moment in their order; raises QuintetError at the first that fails.

    Each is a text for /bin/sh -eu, run in the source's directory with the venv's commands first in PATH; `environment`
    comes on top of the app's own.
    """
    for hook in generation.hooks.get(moment, ()):
        name = hook.name or hook.command
        host.report(f"{moment}: {name}")
        # systemd takes a process that ends by SIGTERM for one that has done its work.
        command = ["/bin/sh", "-euc", f"trap 'exit 143' TERM HUP; {hook.command}"]
        done = transient.run(
            host,
            generation,
            command,
            name="hook",
            timeout_seconds=hook.timeout_seconds,
            environment=environment,
        )
        if not done.ok:
            how = f"ended with code {done.code}"
            remedy = "Correct the command or what it needs, then deploy again."
            if done.timed_out:
                how = f"did not end within {hook.timeout_seconds:g} s and was stopped"
                remedy = "Make the command faster or raise its timeout_seconds, then deploy again."
            raise QuintetError(
                f"{generation.app}: the hook '{name}' ({moment}) of generation {generation.identifier} {how}.",
                f"It ran as {generation.user} in {generation.path}/src: {hook.command}",
                remedy,
                done.output.splitlines()[-SHOWN_LINES:] or ["(it wrote nothing)"],
            )
