"""Running manage.py of a generation."""

from quintet_host import transient
from quintet_host.errors import QuintetError
from quintet_host.generation import load
from quintet_host.host import Host


def manage(host: Host, app: str, identifier: str | None, arguments: list[str], *, terminal: bool) -> int:
    """Run manage.py of a generation (the current one when None) on this terminal or these pipes; returns its code."""
    wanted = identifier or host.layout.current_id(app)
    if wanted is None:
        raise QuintetError(
            f"{app}: serves nothing yet, so there is no current generation to run manage.py of.",
            f"{host.layout.current(app)} does not exist.",
            f"Deploy the app first, or name a generation: quintet manage {app} --generation ID -- …",
        )
    generation = load(host.layout, app, wanted)
    if not generation.manage:
        raise QuintetError(
            f"{app}: generation {wanted} has no manage.py.",
            f"{generation.path}/generation.json names none.",
            "Set the app's `manage` if its source has one.",
        )
    command = [f"{generation.path}/venv/bin/python", generation.manage, *arguments]
    return transient.attach(host, generation, command, name="manage", terminal=terminal)
