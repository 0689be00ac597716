"""What is on this host and how it is."""

from dataclasses import asdict
from typing import Any

from quintet_host import maintenance, units
from quintet_host.generation import find
from quintet_host.host import Host
from quintet_host.lock import read_lease


def app_status(host: Host, app: str) -> dict[str, Any]:
    """Return what `status --json` shows of an app; one that this host does not know has no generations."""
    store = host.store(app)
    state = store.read()
    current = host.layout.current_id(app)
    identifiers = host.layout.generation_ids(app)
    found = {identifier: find(host.layout, app, identifier) for identifier in identifiers}
    # One question to systemd for all of them.
    drains = [units.drain_unit(app, identifier) for identifier in identifiers]
    active = host.system.states([unit for one in found.values() if one for unit in one.units] + drains)
    told = host.system.statuses(unit for one in found.values() if one for unit in one.once)
    generations = []
    for identifier, generation in found.items():
        recorded = store.generation(identifier)
        generations.append(
            {
                "generation": identifier,
                **asdict(recorded),
                "built_at": generation.built_at if generation else "",
                "draining": active[units.drain_unit(app, identifier)] not in units.STOPPED,
                "units": {unit: active[unit] for unit in generation.units} if generation else {},
                # What is done on one of several hosts: whether here.
                "once": {unit: told[unit] for unit in generation.once if unit in told} if generation else {},
            }
        )
    # What neither serves nor drains: left by a change that was killed.
    left = sorted(
        str(one["generation"])
        for one in generations
        if one["generation"] != current
        and not one["draining"]
        and not set(dict(one["units"]).values()) <= set(units.STOPPED)
    )
    generations.sort(key=lambda one: (str(one["built_at"]), str(one["since"])), reverse=True)
    serving = found.get(current) if current else None
    lease = read_lease(host, app)
    is_open = not host.layout.gate(app).exists()
    return {
        "app": app,
        "current": current,
        "previous": state.previous if state.previous != current else None,
        "hold": asdict(state.hold) if state.hold else None,
        "healthy": serving is not None and all(active[unit] == "active" for unit in serving.units) and is_open,
        "gate": "open" if is_open else "closed",
        "lock": asdict(lease) if lease else None,
        "unconfirmed": asdict(state.unconfirmed) if state.unconfirmed else None,
        "left": left,
        "maintenance": maintenance.state(host, app),
        "prepared": host.settings(app).get("prepared"),
        "venvs": sorted(path.parent.name for path in host.layout.venvs(app).glob("*/.complete")),
        "generations": generations,
    }


def as_text(status: dict[str, Any]) -> str:
    """Write an app's status for people."""
    current, hold = status["current"], status["hold"]
    if current is None:
        head = "serves nothing yet"
    else:
        head = f"serves {current}, " + ("all units run" if status["healthy"] else "NOT all units run")
    if current is not None and status["gate"] == "closed":
        head = f"serves nobody until the probes of {current} pass (journalctl -u quintet-gate-{status['app']})"
    lines = [f"{status['app']}: {head}"]
    if status["previous"]:
        lines.append(f"  previous {status['previous']} (quintet rollback {status['app']})")
    if hold:
        lines.append(f"  hold     site.yml keeps {hold['generation']}, since {hold['since']} by {hold['by']}")
    if status["maintenance"]:
        since = status["maintenance"]
        ends = f"quintet maintenance {status['app']} off"
        lines.append(f"  edge     in maintenance since {since['since']} by {since['by']} ({ends})")
    if status["lock"]:
        lock = status["lock"]
        lines.append(f"  lock     {lock['holder']} since {lock['since']}: {lock['command']}")
    if status["unconfirmed"]:
        waiting = status["unconfirmed"]
        goes = f"goes back to {waiting['before']} at {waiting['until']} unless it is confirmed"
        lines.append("  switch   " + (goes if waiting["before"] else "is not confirmed yet; before it nothing served"))
    if status["left"]:
        lines.append(f"  left     {', '.join(status['left'])}: the next activate drains it")
    for one in status["generations"]:
        mark = "*" if one["generation"] == current else " "
        drains = ", draining" if one["draining"] else ""
        lines.append(f"{mark} {one['generation']}  {one['state']:8}  since {one['since'] or '-'}{drains}")
        if one["reason"]:
            earlier = "last attempt to serve it again: " if one["state"] == "good" else ""
            lines.append(f"      {earlier}{one['reason']}")
        running = {unit: state for unit, state in one["units"].items() if state not in ("inactive", "unknown")}
        shown = one["units"] if mark == "*" else running
        told = {unit: f"  ({text})" for unit, text in one["once"].items()}
        lines += [f"      {state:12}  {unit}{told.get(unit, '')}" for unit, state in shown.items()]
    return "\n".join(lines)
