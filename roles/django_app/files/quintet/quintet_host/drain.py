"""Letting a generation that is no longer current finish, and starting the current one at boot."""

from quintet_host import gate, units
from quintet_host.errors import QuintetError
from quintet_host.generation import find, load
from quintet_host.host import Host
from quintet_host.lock import locked
from quintet_host.switch import undo_unconfirmed


def drain(host: Host, app: str, identifier: str) -> str:
    """Stop a generation once the edge's pooled connections to it have ended; returns what was done.

    Raises QuintetError when it is current, before the wait or after it.
    """
    generation = load(host.layout, app, identifier)
    _refuse_current(host, app, identifier)
    began = host.clock.monotonic()
    if any(state not in units.STOPPED for state in units.states(host, generation).values()):
        # As Nginx is set up now, not as it was when this generation was built.
        delay = host.settings(app).get("drain_delay_seconds", generation.drain_delay_seconds)
        host.clock.sleep(float(delay))
    # The lock is held for this look only: a stop takes its drain time, and a deploy must not wait for it. An
    # activate of this very generation ends the drain's service before it starts anything.
    with locked(host, app, f"drain {app} {identifier}", wait=True, ignore_lease=True):
        _refuse_current(host, app, identifier)
    answer = units.stop(host, generation)
    if not answer.ok:
        seconds = host.clock.seconds_since(began)
        host.log(app, "drain", "failed", generation=identifier, seconds=seconds, reason=answer.said)
        raise QuintetError(
            f"{app}: generation {identifier} could not be stopped.",
            f"systemd said: {answer.said}",
            f"See systemctl status {' '.join(generation.units)}",
        )
    host.log(app, "drain", "ok", generation=identifier, seconds=host.clock.seconds_since(began))
    return f"{app}: generation {identifier} is drained."


def boot(host: Host, app: str) -> str:
    """Start what `current` names; returns what was done, raises QuintetError when a unit does not start.

    A switch that nobody had confirmed when the host went down is taken back first: whoever made it can't be waited for.
    Where an edge on another host asks this one, its gate is closed until the probes pass, also after a start that failed.
    """
    if host.layout.current_id(app) is None:
        return f"{app}: nothing was switched to yet, so there is nothing to start."
    serving = find(host.layout, app, host.layout.current_id(app) or "")
    # By hand it may be called at any time, when people are served.
    if not (serving and units.is_running(host, serving)) and gate.close(host, app):
        gate.open_later(host, app)
    with locked(host, app, f"boot {app}", wait=True, ignore_lease=True):
        try:
            _go_back(host, app)
        except (OSError, QuintetError) as error:
            host.report(str(error))  # whatever is wrong with that, the site has to come up
        return _start_current(host, app)


def _go_back(host: Host, app: str) -> None:
    unconfirmed = host.store(app).read().unconfirmed
    if unconfirmed:
        candidate = find(host.layout, app, unconfirmed.generation)
        # By hand it may be called at any time, when there is something to stop.
        start = candidate is not None and units.is_running(host, candidate)
        undo_unconfirmed(host, app, "the host was started anew before it was confirmed", start=start)


def _start_current(host: Host, app: str) -> str:
    current = host.layout.current_id(app) or ""
    began = host.clock.now()
    generation = load(host.layout, app, current)
    try:
        units.start(host, generation)
        units.start_background(host, generation)
    except units.UnitError as error:
        host.log(app, "boot", "failed", generation=current, reason=error.what)
        raise QuintetError(
            error.what,
            error.where,
            f"Correct what the journal shows, then: quintet activate {app} {current}",
            host.system.journal(error.units, began),
        ) from error
    host.log(app, "boot", "ok", generation=current)
    return f"{app}: generation {current} runs."


def _refuse_current(host: Host, app: str, identifier: str) -> None:
    if host.layout.current_id(app) == identifier:
        raise QuintetError(
            f"{app}: generation {identifier} serves and is not drained.",
            f"{host.layout.current(app)} names it.",
            f"Switch to another one first: quintet activate {app} ID",
        )
