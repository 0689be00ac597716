"""The way of a change on this host: start, probe, switch, probe through the edge, drain; or all as it was."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from quintet_host import probes, units
from quintet_host.errors import QuintetError
from quintet_host.files import replace_link, sync_directory
from quintet_host.generation import Generation, find, load
from quintet_host.host import Host
from quintet_host.lock import locked
from quintet_host.state import AppState, Hold

# How long a wrong answer through the edge may still turn into the right one.
EDGE_SECONDS = 5.0
# The same while another generation answers: the edge's pooled connections live for keepalive_time, 10 s.
POOLED_SECONDS = 15.0
RETRY_SECONDS = 0.2


@dataclass(frozen=True)
class Outcome:
    """How a change ended."""

    changed: bool
    generation: str
    previous: str | None
    probes: tuple[probes.Result, ...]
    message: str

    def public(self) -> dict[str, Any]:
        """Return what --json shows."""
        return {
            "changed": self.changed,
            "generation": self.generation,
            "previous": self.previous,
            "probes": [result.public() for result in self.probes],
            "message": self.message,
        }


class ChangeError(QuintetError):
    """A change that failed and was taken back; `step` is one of start, probe, switch and edge."""

    def __init__(self, error: QuintetError, step: str, results: Sequence[probes.Result]) -> None:
        super().__init__(error.what, error.where, error.remedy, error.details)
        self.step = step
        self.probes = tuple(results)


def activate(host: Host, app: str, identifier: str, *, keep_hold: bool = False) -> Outcome:
    """Let a generation serve; raises QuintetError when it is refused and ChangeError when it fails."""
    with locked(host, app, f"activate {app} {identifier}"):
        generation = load(host.layout, app, identifier)
        hold = host.store(app).read().hold if keep_hold else None
        if identifier == host.layout.current_id(app):
            return _repair(host, generation, hold)
        _refuse_unless(host, generation, ("built", "good"))
        return _change(host, generation, "activate", hold)


def roll_back(host: Host, app: str, identifier: str | None = None, *, accept_migrations: bool = False) -> Outcome:
    """Let an earlier good generation serve and leave a hold; raises as `activate` does."""
    with locked(host, app, f"rollback {app}" + (f" {identifier}" if identifier else "")):
        current = host.layout.current_id(app)
        if current is None:
            raise QuintetError(
                f"{app}: serves nothing yet, so there is nothing to roll back.",
                f"{host.layout.current(app)} does not exist.",
                f"Deploy it first; what is on this host: quintet status {app}",
            )
        target = load(host.layout, app, identifier or _rollback_target(host, app, current))
        if target.identifier == current:
            raise QuintetError(
                f"{app}: already serves {current}.",
                f"{host.layout.current(app)} names it.",
                _choices(host, app, current),
            )
        _refuse_unless(host, target, ("good",))
        serving = find(host.layout, app, current)
        missing = serving.migrations_missing_in(target) if serving else []
        if missing and not accept_migrations:
            raise QuintetError(
                f"{app}: {target.identifier} does not know migrations that the database has: {', '.join(missing)}.",
                f"Compared {target.path}/generation.json with the current generation's.",
                "If its code can work with that schema, repeat the command with --accept-migrations.",
            )
        done = _change(host, target, "rollback", Hold(target.identifier, host.now(), host.by))
        return replace(
            done,
            message=f"{done.message}\nsite.yml now keeps {target.identifier} (hold by {host.by}). To end the hold: "
            f"quintet activate {app} {current}, or site.yml with -e django_app_end_hold=true.",
        )


def run_probes(host: Host, generation: Generation, *, through_edge: bool) -> list[probes.Result]:
    """Run all probes on a generation's own sockets and, if told so, through the edge; returns every result."""
    wanted = probes.load(host.layout, generation.app)
    results = [_probe_own(host, generation, probe) for probe in wanted.probes]
    if through_edge and wanted.edge:
        results += [_probe_edge(host, generation, probe, wanted.edge) for probe in wanted.probes]
    return results


def _rollback_target(host: Host, app: str, current: str) -> str:
    state = host.store(app).read()
    if state.hold and state.hold.generation == current:
        # Otherwise the second of two hasty rollbacks would bring the bad generation back.
        raise QuintetError(
            f"{app}: is rolled back already, to {current} since {state.hold.since} by {state.hold.by}.",
            "Which generation to go to from here has to be said.",
            _choices(host, app, current),
        )
    if state.previous is None or state.previous == current:
        raise QuintetError(
            f"{app}: there is no earlier good generation to go back to.",
            f"{host.layout.state(app)}/app.json names none.",
            _choices(host, app, current),
        )
    return state.previous


def _choices(host: Host, app: str, current: str) -> str:
    store = host.store(app)
    good = [one for one in host.layout.generation_ids(app) if one != current and store.generation(one).state == "good"]
    if not good:
        return f"On this host there is no other good generation than {current}: deploy what should serve."
    return f"Name one: quintet rollback {app} ID. Good generations on this host: {', '.join(good)}."


def _refuse_unless(host: Host, generation: Generation, wanted: Sequence[str]) -> None:
    app, identifier = generation.app, generation.identifier
    found = host.store(app).generation(identifier)
    if found.state in wanted:
        return
    is_what = {
        "failed": f"failed on {found.since}: {found.reason.rstrip('.') or 'no reason is recorded'}",
        "building": f"is not built to its end (its build began on {found.since})",
        "built": "never served, so it is no target of a rollback",
        "unknown": "has no recorded state",
    }[found.state]
    remedy = f"quintet activate {app} {identifier}" if found.state == "built" else "the playbook that deploys this app"
    raise QuintetError(
        f"{app}: generation {identifier} {is_what}.",
        f"Recorded in {host.layout.state(app)}/generations/{identifier}.json. Nothing was changed.",
        f"To have it built and served, run {remedy}; what can serve now: quintet status {app}",
    )


def _repair(host: Host, generation: Generation, hold: Hold | None) -> Outcome:
    """Start what does not run of the current generation; finish a switch that was killed before its end."""
    app, identifier = generation.app, generation.identifier
    store = host.store(app)
    began = host.clock.now()
    before = store.read()
    idle = [unit for unit, state in units.states(host, generation).items() if state != "active"]
    others = units.left_running(host, app, identifier)
    # One that runs beside it means that a change ended before its drain, perhaps before its probes.
    proven = store.generation(identifier).state == "good" and not others
    results: list[probes.Result] = []
    told = [f"{app} already serves {identifier}."]
    if idle or not proven:
        step = "start"
        try:
            units.stop_drain(host, generation)
            if idle:
                host.report(f"starting {', '.join(idle)}")
                units.start(host, generation)
            step = "probe"
            results = run_probes(host, generation, through_edge=not proven)
            for result in results:
                _demand_ok(generation, result)
        except QuintetError as error:
            host.log(app, "repair", "failed", generation=identifier, reason=error.what)
            where = f"Step: {step}. It is the current generation, so nothing was stopped or switched."
            raise ChangeError(_explained(host, generation, error, where, began), step, results) from error
        store.mark(identifier, "good", "", host.clock.now())
        host.log(app, "repair", "ok", generation=identifier, started=idle)
        told += [f"Started again: {', '.join(idle)}."] if idle else []
        told += ["Its switch was cut short and is now complete."] if not proven else []
        told += units.drain_all(host, others)
    if before.hold != hold:
        store.write(replace(before, hold=hold))
        host.log(app, "hold ended", "ok", generation=identifier)
        told.append("The hold is ended.")
    changed = bool(idle) or not proven or before.hold != hold
    return Outcome(changed, identifier, before.previous, tuple(results), " ".join(told))


def _change(host: Host, generation: Generation, action: str, hold: Hold | None) -> Outcome:
    """Take a generation that is not current through all steps, or put everything back."""
    store = host.store(generation.app)
    change = _Change(
        host=host,
        generation=generation,
        wanted=probes.load(host.layout, generation.app),
        before=store.read(),
        current=host.layout.current_id(generation.app),
        began=host.clock.now(),
    )
    began = host.clock.monotonic()

    def log(result: str, **more: Any) -> None:
        seconds = round(host.clock.monotonic() - began, 1)
        about = {"generation": generation.identifier, "before": change.current, "seconds": seconds}
        host.log(generation.app, action, result, **about, **more)

    try:
        change.run()
        store.mark(generation.identifier, "good", "", host.clock.now())
        store.write(AppState(change.previous, hold))
    except Exception as error:
        failure = change.failure(error)
        change.take_back()
        # What once served is not spoilt by today's trouble (a database that is away): it stays a way back.
        state = "good" if store.generation(generation.identifier).state == "good" else "failed"
        reason = failure.what.removeprefix(f"{generation.app}: generation {generation.identifier}").lstrip(": ")
        store.mark(generation.identifier, state, reason, host.clock.now())
        log("failed", step=change.step, reason=reason)
        raise failure from error
    except BaseException:
        change.take_back()
        log("interrupted", step=change.step)
        raise
    log("ok")
    told = [f"{generation.app} now serves {generation.identifier} (before: {change.current or 'nothing'})."]
    told += units.drain_all(host, units.left_running(host, generation.app, generation.identifier))
    return Outcome(True, generation.identifier, change.previous, tuple(change.results), " ".join(told))


@dataclass
class _Change:
    """A change under way: what was before it, how far it is, what the probes said."""

    host: Host
    generation: Generation
    wanted: probes.Probes
    before: AppState
    current: str | None
    began: datetime
    step: str = "start"
    results: list[probes.Result] = field(default_factory=list)

    @property
    def previous(self) -> str | None:
        """What a rollback of this change would go to: a current one that was never proven does not count."""
        current = self.current
        is_good = current is not None and self.host.store(self.generation.app).generation(current).state == "good"
        return current if is_good else self.before.previous

    def run(self) -> None:
        """Start, probe, switch, probe through the edge; raises at the first thing that is not as it should be."""
        host, generation = self.host, self.generation
        host.report(f"starting {generation.identifier}")
        units.stop_drain(host, generation)
        units.start(host, generation)
        self.step = "probe"
        for probe in self.wanted.probes:
            self._demand(_probe_own(host, generation, probe))
        self.step = "switch"
        # Recorded first: whatever kills this process, a rollback knows where to go.
        host.store(generation.app).write(replace(self.before, previous=self.previous))
        _point_current(host, generation.app, generation.identifier)
        host.report(f"switched from {self.current or 'nothing'} to {generation.identifier}")
        self.step = "edge"
        if self.wanted.edge:
            for probe in self.wanted.probes:
                self._demand(_probe_edge(host, generation, probe, self.wanted.edge))

    def failure(self, error: Exception) -> ChangeError:
        """Return what to tell: the error, its step, the candidate's journal. To be asked before `take_back`."""
        if not isinstance(error, QuintetError):
            what = f"{self.generation.app}: {type(error).__name__}: {error}"
            error = QuintetError(what, "", "See that the disk is neither full nor read-only (df, mount).")
        where = f"Step: {self.step} (of start, probe, switch, edge). The candidate is stopped; " + (
            f"{self.current} serves as before." if self.current else "nothing served before it and nothing does now."
        )
        explained = _explained(self.host, self.generation, error, where, self.began)
        return ChangeError(explained, self.step, self.results)

    def take_back(self) -> None:
        """Let the old generation serve again, then stop the candidate: in this order, or nobody answers in between."""
        app = self.generation.app
        if self.host.layout.current_id(app) != self.current:
            _point_current(self.host, app, self.current)
        units.stop(self.host, self.generation)
        self.host.store(app).write(self.before)

    def _demand(self, result: probes.Result) -> None:
        self.results.append(result)
        self.host.report(result.message)
        _demand_ok(self.generation, result)


def _point_current(host: Host, app: str, identifier: str | None) -> None:
    link = host.layout.current(app)
    if identifier is not None:
        replace_link(link, f"generations/{identifier}")
    else:
        link.unlink(missing_ok=True)
        sync_directory(link.parent)


def _probe_own(host: Host, generation: Generation, probe: probes.Probe) -> probes.Result:
    result = host.prober(probe, probes.Endpoint(path=generation.socket(probe.kind)))
    return _checked(result, generation)


def _probe_edge(host: Host, generation: Generation, probe: probes.Probe, edge: probes.Endpoint) -> probes.Result:
    """Probe until the new generation answers as wanted, or time is up."""
    began = host.clock.monotonic()
    while True:
        result = _checked(host.prober(probe, edge), generation)
        is_other = result.generation not in (None, generation.identifier)
        if result.ok or host.clock.monotonic() - began >= (POOLED_SECONDS if is_other else EDGE_SECONDS):
            return replace(result, seconds=host.clock.monotonic() - began)
        host.clock.sleep(RETRY_SECONDS)


def _checked(result: probes.Result, generation: Generation) -> probes.Result:
    """Turn a right answer from another generation into a wrong one."""
    if not result.ok or result.generation in (None, generation.identifier):
        return result
    subject = result.message.partition(": ")[0]
    got = f"got generation {result.generation} instead of {generation.identifier}"
    return replace(result, ok=False, message=f"{subject}: {got}")


def _demand_ok(generation: Generation, result: probes.Result) -> None:
    if not result.ok:
        raise QuintetError(
            f"{generation.app}: generation {generation.identifier} failed the probe '{result.name}': {result.message}.",
            "",
            "Correct the app or its settings and deploy it again.",
        )


def _explained(host: Host, generation: Generation, error: QuintetError, where: str, since: datetime) -> QuintetError:
    """Add to an error what happened to the host, and the journal's lines since the change began."""
    concerned = error.units if isinstance(error, units.UnitError) else generation.units
    lines = host.system.journal(concerned, since)
    return QuintetError(
        error.what,
        "\n".join(filter(None, [error.where, where])),
        "\n".join(filter(None, [error.remedy, f"More of the journal: journalctl -u '*@{generation.identifier}*'"])),
        lines or ["(its units logged nothing since this began)"],
    )
