"""The way of a change on this host: start, probe, switch, change workers over, probe through the edge; or all as it was.

A switch is unconfirmed until all of that has passed and, in a deploy, until the controller has said that it has passed on
the other hosts, too. An unconfirmed switch is taken back: by `undo`, by a timer that is set before the switch, or at boot.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from quintet_host import hooks, pool, probes, units
from quintet_host.clock import iso
from quintet_host.errors import QuintetError, as_quintet_error
from quintet_host.files import read_json_object, replace_link, sync_directory
from quintet_host.generation import Generation, find, load
from quintet_host.host import Host
from quintet_host.lock import end_lease, locked, read_lease
from quintet_host.passwords import ended
from quintet_host.state import AppState, Hold, Unconfirmed

# How long a wrong answer through the edge may still turn into the right one.
EDGE_SECONDS = 5.0
# The same while another generation answers: the edge's pooled connections live for keepalive_time, 10 s.
POOLED_SECONDS = 15.0
RETRY_SECONDS = 0.2
# Within this a command that confirms its switch itself has ended; after it, it must have been killed.
OWN_CONFIRM_SECONDS = 900.0


STEPS = ("start", "probe", "before_switch", "switch", "workers", "edge")


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
    """A change that failed and was taken back; `step` is one of STEPS."""

    def __init__(self, error: QuintetError, step: str, results: Sequence[probes.Result]) -> None:
        super().__init__(error.what, error.where, error.remedy, error.details)
        self.step = step
        self.probes = tuple(results)


def activate(
    host: Host, app: str, identifier: str, *, keep_hold: bool = False, confirm_within: float | None = None
) -> Outcome:
    """Let a generation serve; raises QuintetError when it is refused and ChangeError when it fails.

    With `confirm_within`, in seconds, the switch is taken back after that time unless `confirm` is called.
    """
    with locked(host, app, f"activate {app} {identifier}"):
        generation = load(host.layout, app, identifier)
        state, is_current = host.store(app).read(), identifier == host.layout.current_id(app)
        if not is_current:
            _refuse_unless(host, generation, ("built", "good"))
        if state.unconfirmed and not (is_current and state.unconfirmed.generation == identifier):
            # What nobody has confirmed is no generation to go back to; and one that was gone back from, but not to the end, is.
            undo_unconfirmed(host, app, "another generation was to be switched to before this one was confirmed")
        hold = host.store(app).read().hold if keep_hold else None
        if identifier == host.layout.current_id(app):
            return _repair(host, generation, hold, confirm_within)
        return _change(host, generation, "activate", hold, confirm_within)


def roll_back(
    host: Host,
    app: str,
    wanted: str | None = None,
    *,
    accept_migrations: bool = False,
    confirm_within: float | None = None,
) -> Outcome:
    """Let an earlier good generation serve and leave a hold; raises as `activate` does.

    `wanted` is a generation's id, or a release, of which the newest good generation is taken.
    """
    with locked(host, app, f"rollback {app}" + (f" {wanted}" if wanted else "")):
        current = host.layout.current_id(app)
        if current is None:
            raise QuintetError(
                f"{app}: serves nothing yet, so there is nothing to roll back.",
                f"{host.layout.current(app)} does not exist.",
                f"Deploy it first; what is on this host: quintet status {app}",
            )
        target = load(host.layout, app, _named(host, app, wanted) if wanted else _rollback_target(host, app, current))
        state = host.store(app).read()
        if target.identifier == current and (state.holds(current) or state.unconfirmed or not host.token):
            raise QuintetError(
                f"{app}: already serves {current}.",
                f"{host.layout.current(app)} names it.",
                _choices(host, app, current),
            )
        _refuse_unless(host, target, ("good",))
        if target.identifier == current:
            # In a run for all hosts the others go back to it: the next one must not move this host on alone. The hold waits for them as a
            # switch does, and is taken back with theirs.
            until = _watch(host, app, current, confirm_within or OWN_CONFIRM_SECONDS)
            waiting = Unconfirmed(current, current, until, state.previous, state.hold, host.token)
            host.store(app).write(AppState(state.previous, Hold(current, host.now(), host.by), waiting))
            host.log(app, "rollback", "ok", generation=current, before=current)
            held = f"{app} already serves {current}; site.yml now keeps it (hold by {host.by})."
            return Outcome(True, current, state.previous, (), held)
        gone = ended(host, target)
        if gone:
            raise QuintetError(
                f"{app}: {target.identifier} logs in with a password that is no longer good: {', '.join(gone)}.",
                f"{host.layout.configuration(app)}/rotations.json has what it was built with neither as the value nor as an old one.",
                "Deploy its code again: the generation that is built then has the present password.",
            )
        missing = _migrations_missing_in(host, target, find(host.layout, app, current))
        if missing and not accept_migrations:
            raise QuintetError(
                f"{app}: {target.identifier} does not know migrations that the database has: {', '.join(missing)}.",
                f"Compared {target.path}/generation.json with the current generation's and with what was migrated.",
                "If its code can work with that schema, repeat the command with --accept-migrations"
                " (rollback.yml: -e accept_migrations=true).",
            )
        hold = Hold(target.identifier, host.now(), host.by)
        began = host.clock.monotonic()
        undo_unconfirmed(host, app, "rolled back before it was confirmed")
        if target.identifier == host.layout.current_id(app):
            state = replace(host.store(app).read(), hold=hold)
            host.store(app).write(state)
            seconds = host.clock.seconds_since(began)
            host.log(app, "rollback", "ok", generation=target.identifier, before=current, seconds=seconds)
            done = Outcome(True, target.identifier, state.previous, (), f"{app} now serves {target.identifier} again.")
        else:
            done = _change(host, target, "rollback", hold, confirm_within)
        return replace(
            done,
            message=f"{done.message}\nsite.yml now keeps {target.identifier} (hold by {host.by}). To end the hold: "
            f"quintet activate {app} {current}, or site.yml with -e django_app_end_hold=true.",
        )


def confirm(host: Host, app: str, identifier: str) -> Outcome:
    """Let the switch to a generation stay and drain the others; raises QuintetError when it does not serve any more."""
    # Before the lock is looked at, which an undo ends as well: that the switch is undone is the better news.
    _refuse_other_than_current(host, app, identifier)
    with locked(host, app, f"confirm {app} {identifier}"):
        _refuse_other_than_current(host, app, identifier)
        state = host.store(app).read()
        if state.unconfirmed is None:
            return Outcome(
                False, identifier, state.previous, (), f"{app}: generation {identifier} is confirmed already."
            )
        told = _confirmed(host, app, identifier)
        lease = read_lease(host, app)
        # How long the whole deploy took, from its lock on.
        took = (
            {"seconds": round((host.clock.now() - datetime.fromisoformat(lease.since)).total_seconds())}
            if lease
            else {}
        )
        host.log(app, "confirm", "ok", generation=identifier, before=state.unconfirmed.before, **took)
    return Outcome(True, identifier, state.previous, (), " ".join([f"{app}: generation {identifier} stays.", *told]))


def _refuse_other_than_current(host: Host, app: str, identifier: str) -> None:
    current = host.layout.current_id(app)
    if current != identifier:
        reason = host.store(app).generation(identifier).reason
        raise QuintetError(
            f"{app}: generation {identifier} does not serve any more, so its switch can't be confirmed.",
            f"{host.layout.current(app)} names {current or 'nothing'}" + (f"; {reason}." if reason else "."),
            f"See quintet log {app}, then run the playbook again.",
        )


def undo(host: Host, app: str, identifier: str | None, reason: str) -> Outcome:
    """Take an unconfirmed switch back, if there is one (to `identifier`, when given); returns what serves then.

    With host.token only a switch of that deploy.
    """
    with locked(host, app, f"undo {app}", wait=True, ignore_lease=True):
        unconfirmed = host.store(app).read().unconfirmed
        current = host.layout.current_id(app) or ""
        is_meant = unconfirmed is not None and (
            identifier in (None, unconfirmed.generation) and host.token in ("", unconfirmed.token)
        )
        if unconfirmed is None or not is_meant:
            if unconfirmed is None:
                units.stop_undo(host, app)
            return Outcome(False, current, None, (), f"{app}: there is no switch to take back; {current} serves.")
        went_back = undo_unconfirmed(host, app, reason)
        if went_back:
            on_failure(host, app, "confirm", reason, unconfirmed.generation)
        # The deploy that was to confirm it can't any more, and must not keep others out.
        end_lease(host, app, whose=unconfirmed.token)
        current = host.layout.current_id(app) or "nothing"
    what = "hold of" if unconfirmed.before == unconfirmed.generation else "switch to"
    message = f"{app}: the {what} {unconfirmed.generation} is taken back ({reason}). {current} serves."
    if not went_back:
        message = (
            f"{app}: before {current} nothing served, so there is nothing to go back to ({reason}). {current} serves."
        )
    return Outcome(went_back, current, unconfirmed.previous, (), message)


def undo_unconfirmed(host: Host, app: str, reason: str, *, start: bool = True) -> bool:
    """Take an unconfirmed switch back, if there is one; with the lock held. Returns whether anything was gone back to.

    `start` is false at boot, when nothing runs. Each step may be done already, by an undo that was killed.
    """
    store = host.store(app)
    state = store.read()
    unconfirmed = state.unconfirmed
    if unconfirmed is None:
        return False
    current, after = host.layout.current_id(app), unconfirmed.generation
    went_back = unconfirmed.before is not None and current in (after, unconfirmed.before)
    if went_back:
        began = host.clock.monotonic()
        about = {"generation": after, "before": unconfirmed.before, "reason": reason}
        host.report(f"going back from {after} to {unconfirmed.before}: {reason}")
        try:
            before = load(host.layout, app, unconfirmed.before or "")
            if start:
                units.stop_drain(host, before)
                units.start(host, before)
        except QuintetError as error:
            host.log(app, "undo", "failed", **about, error=error.what)
            raise
        _point_current(host, app, before.identifier)
        if start:
            units.stop_background(host, app, before.identifier)
            _start_background_again(host, before)
            units.drain_all(host, units.left_running(host, app, before.identifier))
        # Writing comes last: on a full disk all of the above must have happened.
        if store.generation(after).state != "good":  # what served before stays a way back
            store.mark(after, "built", f"its switch was taken back: {reason}", host.clock.now())
        if after != before.identifier:
            _left_pool(host, app, after)
        host.log(app, "undo", "ok", **about, seconds=host.clock.seconds_since(began))
    else:
        host.log(app, "undo", "nothing to go back to", generation=after, reason=reason)
    store.write(AppState(unconfirmed.previous, unconfirmed.hold))
    units.stop_undo(host, app)
    return went_back


def on_failure(host: Host, app: str, step: str, reason: str, failed: str) -> None:
    """Run the on_failure hooks of the generation that goes on serving. What they do wrong is only said."""
    serving = find(host.layout, app, host.layout.current_id(app) or "")
    if serving is None:
        return
    try:
        told = {"QUINTET_STEP": step, "QUINTET_REASON": reason, "QUINTET_FAILED_GENERATION": failed}
        hooks.run(host, serving, "on_failure", told)
    except (OSError, QuintetError) as error:
        host.report(str(error))
        host.log(app, "on_failure", "failed", generation=serving.identifier, reason=str(error).splitlines()[0])


def run_probes(host: Host, generation: Generation, *, through_edge: bool) -> list[probes.Result]:
    """Run all probes on a generation's own sockets and, if told so, through the edge; returns every result."""
    held = host.store(generation.app).read().holds(generation.identifier)
    wanted = probes.load(host.layout, generation.app, of=generation.identifier if held else None)
    results = [_probe_own(host, generation, probe) for probe in wanted.probes]
    if through_edge:
        results += [_probe_edge(host, generation, probe, edge) for probe, edge in wanted.through_edge]
    return results


def _named(host: Host, app: str, wanted: str) -> str:
    """Return the generation that an id names, or the newest good one of a release."""
    if wanted in host.layout.generation_ids(app) or "-" in wanted:
        return wanted
    store = host.store(app)
    ids = [one for one in host.layout.generation_ids(app) if one.startswith(f"{wanted}-")]
    good = [one for one in ids if store.generation(one).state == "good"]
    if not good:
        raise QuintetError(
            f"{app}: there is no good generation of release {wanted} on this host.",
            f"Looked in {host.layout.generations(app)}; of this release there: {', '.join(ids) or 'none'}.",
            _choices(host, app, host.layout.current_id(app) or ""),
        )
    return max(good, key=lambda one: load(host.layout, app, one).built_at)


def _migrations_missing_in(host: Host, target: Generation, serving: Generation | None) -> list[str]:
    """Return what the database may have and the target does not know: the current code's, and what was applied here."""
    applied = read_json_object(host.layout.state(target.app) / "migrations.json") or {}
    known = {label: set(names) for label, names in applied.items()}
    for label, names in serving.migrations.items() if serving else ():
        known.setdefault(label, set()).update(names)
    # Of labels that the target has no code for at all, it has no models either, but rows of others may depend on them.
    return sorted(
        f"{label}.{name}" for label, names in known.items() for name in names - set(target.migrations.get(label, ()))
    )


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


def _repair(host: Host, generation: Generation, hold: Hold | None, confirm_within: float | None) -> Outcome:
    """Start what does not run of the current generation; finish a switch that was killed before its end."""
    app, identifier = generation.app, generation.identifier
    store = host.store(app)
    began = host.clock.now()
    before, since = store.read(), host.clock.monotonic()
    idle = [unit for unit, state in units.states(host, generation).items() if state != "active"]
    others = units.left_running(host, app, identifier)
    # One that runs beside it means that a change ended before its drain, perhaps before its probes.
    proven = store.generation(identifier).state == "good" and not others and before.unconfirmed is None
    # Since a boot nobody is let in; it is asked here why, and opened by what watches it.
    is_shut = host.layout.gate(app).exists()
    if before.unconfirmed and host.token:
        # Left by a run that was killed: from here on it is this one's to take back.
        before = replace(before, unconfirmed=replace(before.unconfirmed, token=host.token))
        store.write(before)
    results: list[probes.Result] = []
    told = [f"{app} already serves {identifier}."]
    if idle or not proven or is_shut:
        step = "start"
        try:
            units.stop_drain(host, generation)
            if idle:
                host.report(f"starting {', '.join(idle)}")
                units.start(host, generation)
            step = "workers"
            units.stop_background(host, app, identifier)
            if not set(idle).isdisjoint(generation.background):
                units.start_background(host, generation)
            step = "probe"
            results = run_probes(host, generation, through_edge=not proven)
            for result in results:
                _demand_ok(generation, result)
        except QuintetError as error:
            seconds = host.clock.seconds_since(since)
            host.log(app, "repair", "failed", generation=identifier, seconds=seconds, reason=error.what)
            where = f"Step: {step}. It is the current generation, so nothing was stopped or switched."
            raise ChangeError(_explained(host, generation, error, where, began), step, results) from error
        seconds = host.clock.seconds_since(since)
        host.log(app, "repair", "ok", generation=identifier, seconds=seconds, started=idle)
        told += [f"Started again: {', '.join(idle)}."] if idle else []
        told += ["Its switch was cut short and is now complete."] if not proven else []
        told += ["Its probes pass, so its gate opens."] if is_shut else []
    if before.hold != hold:
        store.write(replace(before, hold=hold))
        host.log(app, "hold ended", "ok", generation=identifier)
        told.append("The hold is ended.")
    if not proven:
        if confirm_within is None or before.unconfirmed is None:
            told += _confirmed(host, app, identifier)
        else:
            _watch_on(host, app, identifier, confirm_within)
    changed = bool(idle) or not proven or is_shut or before.hold != hold
    return Outcome(changed, identifier, before.previous, tuple(results), " ".join(told))


def _change(
    host: Host, generation: Generation, action: str, hold: Hold | None, confirm_within: float | None
) -> Outcome:
    """Take a generation that is not current through all steps, or put everything back."""
    store = host.store(generation.app)
    change = _Change(
        host=host,
        generation=generation,
        # What a deploy switches to has to answer what the inventory asks; what is gone back to, what it was asked then.
        wanted=probes.load(
            host.layout, generation.app, of=None if action == "activate" and host.token else generation.identifier
        ),
        before=store.read(),
        hold=hold,
        confirm_within=confirm_within,
        current=host.layout.current_id(generation.app),
        began=host.clock.now(),
    )
    began = host.clock.monotonic()
    confirmed: list[str] = []

    def log(result: str, **more: Any) -> None:
        seconds = host.clock.seconds_since(began)
        about = {"generation": generation.identifier, "before": change.current, "seconds": seconds}
        host.log(generation.app, action, result, **about, **more)

    try:
        change.run()
        if confirm_within is not None:
            # Workers and hooks may have taken their time: the controller's begins now.
            _watch_on(host, generation.app, generation.identifier, confirm_within)
        else:
            confirmed = _confirmed(host, generation.app, generation.identifier)
    except Exception as error:
        failure = change.failure(error)
        # What once served is not spoilt by today's trouble (a database that is away): it stays a way back.
        state = "good" if store.generation(generation.identifier).state == "good" else "failed"
        reason = failure.what.removeprefix(f"{generation.app}: generation {generation.identifier}").lstrip(": ")
        # Each by itself: on a full disk neither must keep the other from happening.
        for settle in (change.take_back, lambda: store.mark(generation.identifier, state, reason, host.clock.now())):
            try:
                settle()
            except (OSError, QuintetError) as second:
                # What failed first is what has to be told; the undo's timer, or the next run, does the rest.
                host.report(str(second))
        log("failed", step=change.step, reason=reason)
        on_failure(host, generation.app, change.step, reason, generation.identifier)
        raise failure from error
    except BaseException:
        change.take_back()
        log("interrupted", step=change.step)
        raise
    log("ok")
    told = [f"{generation.app} now serves {generation.identifier} (before: {change.current or 'nothing'})."]
    told += change.warnings + confirmed
    return Outcome(True, generation.identifier, change.previous, tuple(change.results), " ".join(told))


def _confirmed(host: Host, app: str, identifier: str) -> list[str]:
    """Record that a switch stays and drain what ran before; returns what to tell the operator."""
    store = host.store(app)
    state = store.read()
    if state.hold is None and (host.token or not host.layout.kept_probes(app, identifier).exists()):
        probes.keep(host.layout, app, identifier)
    # In this order: killed in between, the switch stays unconfirmed, and is taken back or confirmed as a whole.
    store.mark(identifier, "good", "", host.clock.now())
    store.write(replace(state, unconfirmed=None))
    units.stop_undo(host, app)
    if state.unconfirmed and state.unconfirmed.before not in (None, identifier):
        _left_pool(host, app, state.unconfirmed.before)
    return units.drain_all(host, units.left_running(host, app, identifier))


def _left_pool(host: Host, app: str, identifier: str) -> None:
    """Note in the static pool that a generation no longer serves. On a full disk its files only stay longer."""
    try:
        pool.left(host, app, identifier, host.clock.now())
    except OSError as error:
        host.report(f"could not note in the static pool that {identifier} no longer serves: {error}")


def _watch(host: Host, app: str, identifier: str, seconds: float) -> str:
    """Have the switch to a generation taken back in so many seconds; returns when that will be."""
    answer = units.start_undo(host, app, identifier, seconds)
    if not answer.ok:
        raise QuintetError(
            f"{app}: the switch to {identifier} could not be guarded.",
            f"systemd said: {answer.said}",
            "See systemctl --failed and the journal, then try again.",
        )
    return iso(host.clock.now() + timedelta(seconds=seconds))


def _watch_on(host: Host, app: str, identifier: str, seconds: float) -> None:
    """Give an unconfirmed switch so many seconds from now, to be confirmed by the deploy that asks for it."""
    until = _watch(host, app, identifier, seconds)
    state = host.store(app).read()
    if state.unconfirmed:
        waiting = replace(state.unconfirmed, until=until, token=host.token)
        host.store(app).write(replace(state, unconfirmed=waiting))


def _start_background_again(host: Host, generation: Generation) -> None:
    """Start the workers and timers of the generation that is gone back to; what fails is said and logged."""
    try:
        units.start_background(host, generation)
    except QuintetError as error:
        host.report(error.what)
        host.log(generation.app, "repair", "failed", generation=generation.identifier, reason=error.what)


@dataclass
class _Change:
    """A change under way: what was before it, how far it is, what the probes said."""

    host: Host
    generation: Generation
    wanted: probes.Probes
    before: AppState
    hold: Hold | None
    confirm_within: float | None
    current: str | None
    began: datetime
    step: str = "start"
    results: list[probes.Result] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    # Whether it was switched away from so lately that Nginx may still have connections to it.
    drained: bool = False

    @property
    def previous(self) -> str | None:
        """What a rollback of this change would go to: a current one that was never proven does not count."""
        current = self.current
        is_good = current is not None and self.host.store(self.generation.app).generation(current).state == "good"
        return current if is_good else self.before.previous

    def run(self) -> None:
        """Go through STEPS; raises at the first thing that is not as it should be."""
        host, generation = self.host, self.generation
        app, identifier = generation.app, generation.identifier
        host.report(f"starting {identifier}")
        self.drained = units.stop_drain(host, generation)
        units.start(host, generation)
        self.step = "probe"
        for probe in self.wanted.probes:
            self._demand(_probe_own(host, generation, probe))
        self.step = "before_switch"
        hooks.run(host, generation, "before_switch")
        self.step = "switch"
        # Pages that are open when they are switched away from go on asking for their files.
        for one in filter(None, (find(host.layout, app, self.current or ""), generation)):
            pool.add(host, one)
        until = _watch(host, app, identifier, self.confirm_within or OWN_CONFIRM_SECONDS)
        # Recorded first: whatever kills this process, a rollback, an undo or a boot knows where to go.
        waiting = Unconfirmed(identifier, self.current, until, self.before.previous, self.before.hold, host.token)
        host.store(app).write(AppState(self.previous, self.hold, waiting))
        _point_current(host, app, identifier)
        host.report(f"switched from {self.current or 'nothing'} to {identifier}")
        self.step = "workers"
        units.stop_background(host, app, identifier)
        units.start_background(host, generation)
        self.step = "edge"
        for probe, edge in self.wanted.through_edge:
            self._demand(_probe_edge(host, generation, probe, edge))
        try:
            hooks.run(host, generation, "after_switch")
        except QuintetError as error:
            # The site is well; what was to be done beside it is for somebody to look at.
            self.warnings.append(f"WARNING: {error.what}")
            host.report(str(error))
            host.log(app, "after_switch", "failed", generation=identifier, reason=error.what)

    def failure(self, error: Exception) -> ChangeError:
        """Return what to tell: the error, its step, the candidate's journal. To be asked before `take_back`."""
        error = as_quintet_error(self.generation.app, error)
        where = f"Step: {self.step} (of {', '.join(STEPS)}). The candidate is stopped; " + (
            f"{self.current} serves as before." if self.current else "nothing served before it and nothing does now."
        )
        explained = _explained(self.host, self.generation, error, where, self.began)
        return ChangeError(explained, self.step, self.results)

    def take_back(self) -> None:
        """Let the old generation serve again, then stop the candidate: in this order, or nobody answers in between."""
        host, app = self.host, self.generation.app
        was_switched = host.layout.current_id(app) != self.current
        if was_switched:
            _point_current(host, app, self.current)
            units.stop_background(host, app, self.current)
            serving = find(host.layout, app, self.current or "")
            if serving:
                _start_background_again(host, serving)
        # Nginx may have connections to one that was switched to, and people may have WebSockets.
        lingers = (was_switched and self.current) or self.drained
        if not (lingers and units.start_drain(host, self.generation).ok):
            units.stop(host, self.generation)
        host.store(app).write(self.before)
        units.stop_undo(host, app)

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
