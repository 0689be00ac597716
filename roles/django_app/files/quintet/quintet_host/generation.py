"""A generation as its generation.json describes it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quintet_host.errors import QuintetError
from quintet_host.files import read_json_object
from quintet_host.layout import Layout


@dataclass(frozen=True)
class Hook:
    """A command of the app's at one moment of a change."""

    name: str
    command: str
    timeout_seconds: float


@dataclass(frozen=True)
class Generation:
    """One generation on this host; times are seconds."""

    app: str
    identifier: str
    path: Path
    built_at: str
    user: str
    group: str
    revision: int
    manage: str | None
    properties: tuple[str, ...]
    sockets: tuple[str, ...]
    services: tuple[str, ...]
    drain_delay_seconds: float
    migrations: dict[str, tuple[str, ...]]
    workers: tuple[str, ...] = ()
    timers: tuple[str, ...] = ()
    # Those of its workers that work on one of several hosts and wait on the others.
    once: tuple[str, ...] = ()
    # By moment: before_migrate, after_migrate, before_switch, after_switch, on_failure.
    hooks: dict[str, tuple[Hook, ...]] = field(default_factory=dict)

    @property
    def servers(self) -> tuple[str, ...]:
        """What answers requests, sockets first."""
        return self.sockets + self.services

    @property
    def background(self) -> tuple[str, ...]:
        """What works without being asked, and so in one generation only: timers first, since they start what workers do not."""
        return self.timers + self.workers

    @property
    def jobs(self) -> tuple[str, ...]:
        """The services that timers start."""
        return tuple(timer.removesuffix(".timer") + ".service" for timer in self.timers)

    @property
    def units(self) -> tuple[str, ...]:
        """All units that are active while this generation is the current one, sockets first."""
        return self.servers + self.background

    def socket(self, kind: str) -> Path:
        """Return where this generation answers probes of a kind: `http` or `websocket`."""
        return self.path / "run" / ("daphne.sock" if kind == "websocket" else "gunicorn.sock")


def load(layout: Layout, app: str, identifier: str) -> Generation:
    """Read a generation; raises QuintetError when it is not on this host or its description can't be read."""
    path = layout.generation(app, identifier)
    if not path.is_dir():
        here = ", ".join(layout.generation_ids(app)) or "none"
        raise QuintetError(
            f"{app}: there is no generation {identifier} on this host.",
            f"Looked in {layout.generations(app)}; there: {here}.",
            f"See what there is with: quintet status {app}",
        )
    description = path / "generation.json"
    value = read_json_object(description)
    try:
        if value is None:
            raise ValueError("no JSON object")
        return _parse(app, identifier, path, value)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise QuintetError(
            f"{app}: generation {identifier} has no valid description ({error!r}).",
            f"In {description}.",
            "Build it again: run the playbook that deploys this app.",
        ) from error


def find(layout: Layout, app: str, identifier: str) -> Generation | None:
    """Read a generation, None when that can't be done."""
    try:
        return load(layout, app, identifier)
    except QuintetError:
        return None


def _parse(app: str, identifier: str, path: Path, value: dict[str, Any]) -> Generation:
    if (value["app"], value["generation"]) != (app, identifier):
        raise ValueError(f"it describes {value['app']} {value['generation']}")
    return Generation(
        app=app,
        identifier=identifier,
        path=path,
        built_at=str(value.get("built_at", "")),
        user=str(value["user"]),
        group=str(value["group"]),
        revision=int(value["revision"]),
        manage=value.get("manage"),
        properties=tuple(value.get("properties", ())),
        sockets=tuple(value.get("sockets", ())),
        services=tuple(value.get("services", ())),
        drain_delay_seconds=float(value.get("drain_delay_seconds", 15)),
        migrations={label: tuple(names) for label, names in value.get("migrations", {}).items()},
        workers=tuple(value.get("workers", ())),
        timers=tuple(value.get("timers", ())),
        once=tuple(value.get("once", ())),
        hooks={
            moment: tuple(Hook(str(one["name"]), str(one["command"]), float(one["timeout_seconds"])) for one in hooks)
            for moment, hooks in value.get("hooks", {}).items()
        },
    )
