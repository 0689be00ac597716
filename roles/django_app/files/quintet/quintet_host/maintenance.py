"""Maintenance of a site: a mark that Nginx looks for at each request, so that nothing has to be reloaded."""

from typing import Any

from quintet_host.errors import QuintetError
from quintet_host.files import read_json_object, write_json
from quintet_host.generation import load
from quintet_host.host import Host


def state(host: Host, app: str) -> dict[str, Any] | None:
    """Return since when and by whom an app's site is in maintenance, both empty where that can't be read; None when it is not."""
    mark = host.layout.maintenance(app)
    if not mark.exists():
        return None
    known = read_json_object(mark) or {}
    return {"since": str(known.get("since", "")), "by": str(known.get("by", ""))}


def begin(host: Host, app: str) -> bool:
    """Put the site of this host's edge into maintenance; returns whether it was not. Raises QuintetError where there is no edge."""
    _demand_edge(host, app)
    if state(host, app) is not None:
        return False
    mark = host.layout.maintenance(app)
    mark.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    # Nginx's workers must get as far as the file; they never read it.
    mark.parent.chmod(0o755)
    write_json(mark, {"since": host.now(), "by": host.by})
    host.log(app, "maintenance", "on")
    return True


def end(host: Host, app: str) -> bool:
    """End the maintenance; returns whether there was any. Raises QuintetError where there is no edge."""
    _demand_edge(host, app)
    if state(host, app) is None:
        return False
    host.layout.maintenance(app).unlink()
    host.log(app, "maintenance", "off")
    return True


def close_websockets(host: Host, app: str) -> bool:
    """Close the app's open WebSockets with code 1012, over its drain time; returns whether there is anything that could have some.

    Daphne's processes are started anew one after the other, as its drain is what closes gently: any generation's knows it.
    Raises QuintetError when one doesn't come back.
    """
    current = host.layout.current_id(app)
    if current is None:
        return False
    services = [unit for unit in load(host.layout, app, current).services if unit.startswith(f"daphne-{app}-")]
    for unit in services:
        answer = host.system.restart([unit])
        if not answer.ok:
            raise QuintetError(
                f"{app}: {unit} did not start again after its WebSockets were closed.",
                f"systemd said: {answer.said}",
                f"See systemctl status {unit}; quintet activate {app} {current} starts what does not run.",
            )
    if services:
        host.log(app, "close-websockets", "ok", generation=current)
    return bool(services)


def _demand_edge(host: Host, app: str) -> None:
    if not host.layout.edge_site(app).exists():
        raise QuintetError(
            f"{app}: this host's Nginx has no such site.",
            f"There is no {host.layout.edge_site(app)}.",
            f"Use playbooks/maintenance.yml, which knows the edge, or call this command there: quintet maintenance {app} on",
        )
