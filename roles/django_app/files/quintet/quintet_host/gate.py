"""The gate of a host behind an edge on another host: after a boot nobody is let in before the app's probes pass.

It is a piece of Nginx's configuration that the app's site includes while it is there: with it, the site refuses connections before it
has read a request, so that the edge may ask another host for it, whatever it is.
"""

from quintet_host import units
from quintet_host.errors import QuintetError
from quintet_host.files import write_text
from quintet_host.generation import load
from quintet_host.host import Host
from quintet_host.switch import run_probes

LOOK_SECONDS = 1.0


def close(host: Host, app: str) -> bool:
    """Let nobody in from Nginx's next start on, if the app has a gate here; returns whether it has."""
    text = str(host.settings(app).get("gate") or "")
    if text:
        path = host.layout.gate(app)
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_text(path, f"{text}\n")
    return bool(text)


def open_later(host: Host, app: str) -> None:
    """Have the gate opened as soon as the probes pass, however long that takes. Whether that works or not, the app has to start."""
    command = ["/usr/local/sbin/quintet", "rejoin", app, "--by", host.by]
    answer = host.system.run_detached(units.gate_unit(app), f"Gate of {app}", command, restart=True)
    if not answer.ok:
        host.report(f"{app}: its gate stays closed until somebody runs quintet rejoin {app}: {answer.said}")
        host.log(app, "rejoin", "failed", reason=answer.said)


def rejoin(host: Host, app: str) -> str:
    """Wait until the probes of the current generation pass, then open the gate; returns what was done."""
    path = host.layout.gate(app)
    if not path.exists():
        return f"{app}: its gate is open."
    began, told = host.clock.monotonic(), ""
    while True:
        reason = _why_not(host, app)
        if not reason:
            path.unlink(missing_ok=True)
            answer = host.system.reload_nginx()
            if answer.ok:
                break
            # Nginx goes on with it, and so must the file.
            close(host, app)
            reason = f"Nginx was not reloaded: {answer.said}"
        if reason != told:
            told = reason
            host.report(f"{app}: its gate stays closed: {reason}")
        host.clock.sleep(LOOK_SECONDS)
    host.log(app, "rejoin", "ok", seconds=host.clock.seconds_since(began))
    return f"{app}: all probes pass, its gate is open."


def _why_not(host: Host, app: str) -> str:
    """Return why the current generation does not take requests yet; empty when it does."""
    current = host.layout.current_id(app)
    if current is None:
        return "nothing was switched to yet"
    try:
        results = run_probes(host, load(host.layout, app, current), through_edge=False)
    except (OSError, QuintetError) as error:
        return str(error).splitlines()[0]
    return next((result.message for result in results if not result.ok), "")
