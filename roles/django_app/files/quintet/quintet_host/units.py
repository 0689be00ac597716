"""A generation's units: linking them into systemd, starting and stopping them."""

import re
import shutil
from collections.abc import Sequence

from quintet_host.errors import QuintetError
from quintet_host.files import replace_link
from quintet_host.generation import Generation, find
from quintet_host.host import Host
from quintet_host.system import Answer

STOPPED = ("inactive", "failed", "unknown")
# How long a new worker must have run without an end, how long that may take at most, how often it may be restarted on
# the way, and how often one looks.
WORKER_STAY_SECONDS = 5.0
# As much longer may one take that stumbles first.
WORKER_GRACE_SECONDS = 55.0
WORKER_RESTARTS = 2
WORKER_LOOK_SECONDS = 0.5


class UnitError(QuintetError):
    """A failure of systemd; `units` are the ones whose journal tells why."""

    def __init__(self, what: str, where: str, remedy: str, units: Sequence[str]) -> None:
        super().__init__(what, where, remedy)
        self.units = tuple(units)


def drain_unit(app: str, identifier: str) -> str:
    """Return the name of the transient service in which a generation drains."""
    return f"quintet-drain-{app}-{identifier}.service"


def gate_unit(app: str) -> str:
    """Return the name of the transient service that waits until an app's gate may be opened."""
    return f"quintet-gate-{app}.service"


def attached_units(app: str, identifier: str) -> str:
    """Return the pattern of the transient services that people have started in a generation: `quintet manage`."""
    return f"quintet-*-{app}-{identifier}-*.service"


def states(host: Host, generation: Generation) -> dict[str, str]:
    """Return each unit's active state."""
    return host.system.states(generation.units)


def is_running(host: Host, generation: Generation) -> bool:
    """Say whether any unit of a generation, or its drain, is doing anything."""
    found = host.system.states([*generation.units, *generation.jobs, drain_unit(generation.app, generation.identifier)])
    return any(state not in STOPPED for state in found.values())


def start(host: Host, generation: Generation) -> None:
    """Start the servers of a generation that don't run and wait until they are ready; raises QuintetError."""
    directories = generation.path / "units/tmpfiles.conf"
    _demand(generation, "its socket directory can't be made", host.system.make_directories(directories))
    if _link(host, generation):
        _demand(generation, "systemd can't read its units", host.system.reload())
    found = states(host, generation)
    # systemd refuses to start a socket under a service that runs without it.
    closed = {_component(unit) for unit in generation.sockets if found[unit] in STOPPED}
    orphans = [unit for unit in generation.services if _component(unit) in closed and found[unit] not in STOPPED]
    if orphans:
        host.system.stop(orphans)
    host.system.reset_failed([unit for unit in generation.units if found[unit] == "failed"])
    for units in (generation.sockets, generation.services):
        _start(host, generation, units)


def start_background(host: Host, generation: Generation) -> None:
    """Start the workers and timers of a generation and see that the workers stay; raises QuintetError.

    A worker that was restarted twice fails; one must have stayed for the app's `worker_stay_seconds`.
    """
    _start(host, generation, generation.workers)
    _start(host, generation, generation.timers)
    if not generation.workers:
        return
    stay = float(host.settings(generation.app).get("worker_stay_seconds", WORKER_STAY_SECONDS))
    before = host.system.restarts(generation.workers)
    seen, began = before, host.clock.monotonic()
    since = began
    while host.clock.monotonic() - since < stay:
        host.clock.sleep(WORKER_LOOK_SECONDS)
        now = host.system.restarts(generation.workers)
        dying = tuple(unit for unit in now if now[unit] - before[unit] >= WORKER_RESTARTS)
        if dying:
            _demand(generation, f"{', '.join(dying)} died again and again", Answer(False, "restarted twice"), dying)
        waiting = any(state != "active" for state in host.system.states(generation.workers).values())
        if host.clock.monotonic() - began > stay + WORKER_GRACE_SECONDS:
            _demand(generation, f"{', '.join(generation.workers)} did not stay", Answer(False), generation.workers)
        if waiting or now != seen:
            seen, since = now, host.clock.monotonic()


def stop_background(host: Host, app: str, serving: str | None) -> None:
    """Stop the workers, timers and their jobs of all generations but one, each by its own time limit; raises QuintetError."""
    others = [find(host.layout, app, one) for one in host.layout.generation_ids(app) if one != serving]
    for generation in (one for one in others if one is not None and one.background):
        # Timers first: one that elapses meanwhile would start its job again.
        for units in (generation.timers, (*generation.jobs, *generation.workers)):
            running = [unit for unit, state in host.system.states(units).items() if state not in STOPPED]
            if running:
                host.report(f"stopping {', '.join(running)}")
                _demand(generation, f"{', '.join(running)} did not stop", host.system.stop(running), running)


def _start(host: Host, generation: Generation, units: Sequence[str]) -> None:
    answer = host.system.start(units) if units else Answer(True)
    if not answer.ok:
        idle = tuple(unit for unit, state in host.system.states(units).items() if state != "active")
        _demand(generation, f"{', '.join(idle or tuple(units))} did not start", answer, idle or tuple(units))


def stop(host: Host, generation: Generation) -> Answer:
    """Stop all units of a generation and take its links and sockets away; waits for its own drain time."""
    answer = Answer(True)
    everything = (*generation.units, *generation.jobs)
    if any(state not in STOPPED for state in host.system.states(everything).values()):
        # One transaction: a socket with its stop pending can't start its service again for a late connection.
        answer = host.system.stop(everything)
        if not answer.ok:
            return answer  # what still runs needs its links and sockets
    host.system.reset_failed(everything)
    if _unlink(host, generation):
        host.system.reload()
    shutil.rmtree(host.layout.run(generation.app, generation.identifier), ignore_errors=True)
    return answer


def start_drain(host: Host, generation: Generation) -> Answer:
    """Let a generation finish in a service of its own, so that the caller need not wait."""
    unit = drain_unit(generation.app, generation.identifier)
    description = f"Drain of {generation.app} {generation.identifier}"
    command = ["/usr/local/sbin/quintet", "drain", generation.app, generation.identifier, "--by", host.by]
    return host.system.run_detached(unit, description, command)


def stop_drain(host: Host, generation: Generation) -> bool:
    """Call a generation's drain off; what it has stopped already has to be started. Returns whether there was one."""
    unit = drain_unit(generation.app, generation.identifier)
    drains = host.system.states([unit])[unit] not in STOPPED
    if drains:
        host.system.stop([unit])
    return drains


def stop_builds(host: Host, app: str) -> None:
    """Stop the commands of a build whose controller is gone."""
    host.system.stop([f"quintet-build-{app}-*.service"])


def undo_units(app: str) -> tuple[str, str]:
    """Return the names, without .timer or .service, of what takes an unconfirmed switch back: two, to replace one by the other."""
    return f"quintet-undo-{app}-1", f"quintet-undo-{app}-2"


def start_undo(host: Host, app: str, identifier: str, seconds: float) -> Answer:
    """Have an unconfirmed switch taken back in so many seconds, whatever becomes of this process; ends an earlier order."""
    parts = [f"{unit}.{kind}" for unit in undo_units(app) for kind in ("timer", "service")]
    busy = [part for part, state in host.system.states(parts).items() if state not in STOPPED]
    free = [unit for unit in undo_units(app) if not any(part.startswith(f"{unit}.") for part in busy)]
    if not free:
        host.system.stop(busy)
        free, busy = list(undo_units(app)), []
    reason = f"nobody confirmed it within {seconds:g} s"
    command = ["/usr/local/sbin/quintet", "undo", app, identifier, "--reason", reason, "--by", host.by]
    # The new one first: killed in between, the switch is guarded all the same.
    answer = host.system.run_later(free[0], f"Undo of an unconfirmed switch of {app}", seconds, command)
    if answer.ok and busy:
        # A service whose time has come meanwhile waits for the lock that the caller holds.
        host.system.stop(busy)
    return answer


def stop_undo(host: Host, app: str) -> None:
    """Call the undo off. The timers alone: the undo itself may be what calls this."""
    timers = [f"{unit}.timer" for unit in undo_units(app)]
    running = [timer for timer, state in host.system.states(timers).items() if state not in STOPPED]
    if running:
        host.system.stop(running)


def left_running(host: Host, app: str, serving: str | None) -> list[Generation]:
    """Return the generations that run, don't serve and don't drain: the one before, and what killed changes left."""
    others = [find(host.layout, app, one) for one in host.layout.generation_ids(app) if one != serving]
    known = [generation for generation in others if generation is not None]
    drains = {generation.identifier: drain_unit(app, generation.identifier) for generation in known}
    found = host.system.states([*drains.values(), *(unit for generation in known for unit in generation.units)])
    return [
        generation
        for generation in known
        if found[drains[generation.identifier]] in STOPPED
        and any(found[unit] not in STOPPED for unit in generation.units)
    ]


def drain_all(host: Host, generations: Sequence[Generation]) -> list[str]:
    """Start the drain of each; returns what to tell the operator."""
    told = []
    for generation in generations:
        answer = start_drain(host, generation)
        told.append(
            f"{generation.identifier} drains in the background."
            if answer.ok
            else f"WARNING: {generation.identifier} could not be drained ({answer.said}): "
            f"run quintet drain {generation.app} {generation.identifier}."
        )
    return told


def _component(unit: str) -> str:
    """Return gunicorn of gunicorn-shop@….socket."""
    return unit.partition("-")[0]


def _link(host: Host, generation: Generation) -> bool:
    """Link the unit files into systemd's runtime directory; returns whether anything was missing."""
    changed = False
    host.layout.unit_links.mkdir(parents=True, exist_ok=True)
    for pattern in ("*.socket", "*.service", "*.timer"):
        for path in sorted((generation.path / "units").glob(pattern)):
            link = host.layout.unit_links / path.name
            if not link.is_symlink() or link.readlink() != path:
                replace_link(link, str(path))
                changed = True
    return changed


def _unlink(host: Host, generation: Generation) -> bool:
    changed = False
    for path in (generation.path / "units").glob("*"):
        link = host.layout.unit_links / path.name
        if link.is_symlink() and link.readlink() == path:
            link.unlink()
            changed = True
    return changed


def _demand(generation: Generation, what: str, answer: Answer, units: Sequence[str] = ()) -> None:
    if not answer.ok:
        said = re.sub(r' See "systemctl status .*?" for details\.', "", " ".join(answer.said.split()))
        raise UnitError(
            f"{generation.app}: generation {generation.identifier}: {what}.",
            f"systemd said: {said or 'nothing'}",
            "Correct the app or its settings and deploy it again.",
            units=units or generation.units,
        )
