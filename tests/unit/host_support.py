"""A host in a directory, for the tests of the host command: fake systemd, clock and probes, and generations on disk."""

import getpass
import grp
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatch
from pathlib import Path
from typing import IO, Any

from quintet_host.clock import Clock
from quintet_host.files import replace_link
from quintet_host.host import Host
from quintet_host.layout import Layout
from quintet_host.probes import Endpoint, Probe, Result
from quintet_host.system import Answer, Captured, System

ROLE_FILES = Path(__file__).parents[2] / "roles/django_app/files/quintet"
A, B, C, D, E, F = (f"{letter * 8}-77aa01bc" for letter in "abcdef")
PROBES: dict[str, Any] = {
    "edge": {"addresses": ["127.0.0.1"], "port": 80},
    "probes": [
        {"name": "health", "kind": "http", "path": "/healthz", "host": "chat.example.org", "status": 200},
        {"name": "socket", "kind": "websocket", "path": "/ws/health/", "host": "chat.example.org", "status": 101},
    ],
}


class FakeClock(Clock):
    """A clock that only moves when somebody sleeps."""

    def __init__(self) -> None:
        self.slept = 0.0

    def now(self) -> datetime:
        return datetime(2026, 11, 23, 20, 0, 0, tzinfo=UTC) + timedelta(seconds=self.slept)

    def monotonic(self) -> float:
        return self.slept

    def sleep(self, seconds: float) -> None:
        self.slept += seconds


class FakeSystem(System):
    """Knows a unit once it is linked and systemd was told to look; starts it unless it is in `broken`."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.active: dict[str, str] = {}
        self.loaded: set[str] = set()
        self.broken: set[str] = set()
        self.calls: list[tuple[str, ...]] = []
        self.detached: list[tuple[str, ...]] = []
        # How the next reloads of Nginx end.
        self.nginx: list[Answer] = []
        self.later: dict[str, tuple[float, tuple[str, ...]]] = {}
        # Workers that die half a second after each start of theirs, and how often systemd has started them again.
        self.dying: set[str] = set()
        self.restarted: dict[str, int] = {}
        # What services say of themselves.
        self.told: dict[str, str] = {}
        self.attached: tuple[list[str], list[str]] | None = None
        # Unit, options and command of each captured run, and how the next ones end.
        self.captured: list[tuple[str, list[str], list[str]]] = []
        self.answers: list[Captured | tuple[bytes, Captured]] = []

    def start(self, units: Sequence[str]) -> Answer:
        self.calls.append(("start", *units))
        for unit in units:
            if unit not in self.loaded:
                return Answer(False, f"Unit {unit} not found.")
            self.active[unit] = "failed" if unit in self.broken else "active"
        failed = [unit for unit in units if unit in self.broken]
        return Answer(not failed, f"Job for {failed} failed." if failed else "")

    def stop(self, units: Sequence[str]) -> Answer:
        self.calls.append(("stop", *units))
        for unit in units:
            self.active.pop(unit, None)
        return Answer(True)

    def restart(self, units: Sequence[str]) -> Answer:
        self.calls.append(("restart", *units))
        failed = [unit for unit in units if unit in self.broken]
        return Answer(not failed, f"Job for {failed} failed." if failed else "")

    def reset_failed(self, units: Sequence[str]) -> None:
        for unit in units:
            if self.active.get(unit) == "failed":
                del self.active[unit]

    def reload(self) -> Answer:
        self.calls.append(("reload",))
        self.loaded = {path.name for path in self.layout.unit_links.iterdir()}
        return Answer(True)

    def states(self, units: Iterable[str]) -> dict[str, str]:
        return {unit: self.active.get(unit, "inactive") for unit in units}

    def statuses(self, units: Iterable[str]) -> dict[str, str]:
        return {unit: self.told[unit] for unit in units if unit in self.told}

    def is_any_active(self, pattern: str) -> bool:
        return any(fnmatch(unit, pattern) for unit in self.active)

    def make_directories(self, configuration: Path) -> Answer:
        self.calls.append(("tmpfiles", str(configuration)))
        return Answer(True)

    def journal(self, units: Sequence[str], since: datetime, lines: int = 20) -> list[str]:
        return [f"journal of {unit}" for unit in units]

    def reload_nginx(self) -> Answer:
        self.calls.append(("reload nginx",))
        return self.nginx.pop(0) if self.nginx else Answer(True)

    def run_detached(self, unit: str, description: str, command: Sequence[str], *, restart: bool = False) -> Answer:
        self.detached.append(tuple(command))
        self.active[unit] = "active"
        return Answer(True)

    def run_later(self, unit: str, description: str, seconds: float, command: Sequence[str]) -> Answer:
        self.later[unit] = (seconds, tuple(command))
        self.active[f"{unit}.timer"] = "active"
        return Answer(True)

    def restarts(self, units: Sequence[str]) -> dict[str, int]:
        for unit in self.dying.intersection(units):
            self.restarted[unit] = self.restarted.get(unit, 0) + 1
        return {unit: self.restarted.get(unit, 0) for unit in units}

    def run_attached(self, options: Sequence[str], command: Sequence[str]) -> int:
        self.attached = (list(options), list(command))
        return 7

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
        self.captured.append((unit, list(options), list(command)))
        done = self.answers.pop(0) if self.answers else Captured(0, (), "success")
        if isinstance(done, tuple):  # what it writes to standard output, and how it ends
            content, done = done
            assert stdout is not None
            stdout.write(content)
            stdout.flush()
        for line in done.lines:
            if heard:
                heard(line)
        return done

    def flush(self) -> None:
        self.calls.append(("flush",))


@dataclass
class FakeApp:
    """Answers probes as a generation would, through its own socket or through the edge to what `current` names."""

    layout: Layout
    # (generation, "own" or "edge") that answer 503.
    sick: set[tuple[str, str]] = field(default_factory=set)
    # How often the edge still answers from this generation, as pooled connections do.
    pooled: tuple[str, int] = ("", 0)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def __call__(self, probe: Probe, endpoint: Endpoint) -> Result:
        if endpoint.path is not None:
            where, generation = "own", endpoint.path.parents[1].name
            assert endpoint.path.name == ("daphne.sock" if probe.kind == "websocket" else "gunicorn.sock")
        else:
            where, generation = "edge", self.layout.current_id("shop") or ""
            if self.pooled[1]:
                generation = self.pooled[0]
                self.pooled = (generation, self.pooled[1] - 1)
        self.asked.append((probe.name, where))
        if (generation, where) in self.sick:
            return Result(probe.name, False, 0.1, f'{probe}: got 503 {{"status": "bad"}} instead of 200', generation)
        return Result(probe.name, True, 0.1, f"{probe}: as wanted", generation)


@dataclass
class Machine:
    """One host in `root`, with an app `shop`."""

    root: Path
    host: Host
    system: FakeSystem
    clock: FakeClock
    app: FakeApp

    @property
    def layout(self) -> Layout:
        return self.host.layout

    @property
    def current(self) -> str | None:
        return self.layout.current_id("shop")

    def state(self, identifier: str) -> tuple[str, str]:
        found = self.host.store("shop").generation(identifier)
        return found.state, found.reason

    def running(self, identifier: str) -> list[str]:
        return [unit for unit, state in self.system.active.items() if identifier in unit and state == "active"]

    def log(self) -> list[tuple[str, str]]:
        return [(entry["action"], entry["result"]) for entry in self.host.store("shop").read_log()]

    def add(self, identifier: str, state: str = "built", **more: Any) -> Path:
        """Put a generation on disk; `more` goes into its generation.json."""
        path = self.layout.generation("shop", identifier)
        venv = self.layout.venvs("shop") / more.pop("venv", "digest")
        for directory in (path / "src", path / "units", path / "static", venv / "bin"):
            directory.mkdir(parents=True, exist_ok=True)
        (path / "venv").symlink_to(f"../../venvs/{venv.name}")
        (path / "run").symlink_to(self.layout.run("shop", identifier))
        sockets = [f"gunicorn-shop@{identifier}.socket", f"daphne-shop@{identifier}.socket"]
        services = [f"gunicorn-shop@{identifier}.service", f"daphne-shop-1@{identifier}.service"]
        timers = more.get("timers", [])
        jobs = [name.replace(".timer", ".service") for name in timers]
        background = [*more.get("workers", []), *timers, *jobs]
        for name in [*sockets, *services, *background, "tmpfiles.conf", "gunicorn.conf.py"]:
            (path / "units" / name).touch()
        description = {
            "app": "shop",
            "generation": identifier,
            "built_at": f"2026-11-2{'0abcdef'.index(identifier[0])}T20:00:00Z",
            "user": getpass.getuser(),
            "group": grp.getgrgid(os.getegid()).gr_name,
            "revision": 1,
            "manage": "manage.py",
            "properties": ["ProtectSystem=strict"],
            "sockets": sockets,
            "services": services,
            "migrations": {"chat": ["0001_initial"]},
            **more,
        }
        (path / "generation.json").write_text(json.dumps(description))
        if state:
            self.host.store("shop").mark(identifier, state, "it broke" if state == "failed" else "", self.clock.now())
        return path

    def serve(self, identifier: str) -> None:
        """Let a generation on disk be the current, good and running one, as after a switch long ago."""
        units = self.layout.generation("shop", identifier) / "units"
        self.layout.unit_links.mkdir(parents=True, exist_ok=True)
        for path in [*units.glob("*.socket"), *units.glob("*.service"), *units.glob("*.timer")]:
            (self.layout.unit_links / path.name).symlink_to(path)
            if not path.with_suffix(".timer").exists() or path.suffix == ".timer":  # a timer's job waits for it
                self.system.active[path.name] = "active"
        self.system.reload()
        self.system.calls.clear()
        self.host.store("shop").mark(identifier, "good", "", self.clock.now())
        replace_link(self.layout.current("shop"), f"generations/{identifier}")


def machine(root: Path) -> Machine:
    layout = Layout(root)
    system, clock, app = FakeSystem(layout), FakeClock(), FakeApp(layout)
    (root / "etc/quintet/shop").mkdir(parents=True)
    (root / "etc/quintet/shop/probes.json").write_text(json.dumps(PROBES))
    owner = (os.geteuid(), os.getegid())
    host = Host(layout=layout, system=system, clock=clock, prober=app, by="me@desk", owner=owner)
    return Machine(root, host, system, clock, app)


def serving(root: Path) -> Machine:
    """Return a host where A serves and B is built."""
    found = machine(root)
    found.add(A, "good")
    found.serve(A)
    found.add(B)
    return found


def slept_for(found: Machine, seconds: float) -> Machine:
    """Return the machine as seen later; used where real files have real times."""
    clock = FakeClock()
    real = (datetime.now(UTC) - clock.now()).total_seconds()
    clock.slept = real + seconds
    return replace(found, clock=clock, host=replace(found.host, clock=clock))
