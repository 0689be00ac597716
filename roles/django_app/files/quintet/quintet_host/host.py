"""The host that a command works on: its files, its systemd, its clock, and who asks."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from quintet_host import probes
from quintet_host.clock import Clock, iso
from quintet_host.files import read_json_object
from quintet_host.layout import Layout
from quintet_host.state import Store
from quintet_host.system import System


def _silent(_line: str) -> None:
    pass


@dataclass(frozen=True)
class Host:
    """Everything outside the process that commands touch; tests replace each part."""

    layout: Layout = field(default_factory=Layout)
    system: System = field(default_factory=System)
    clock: Clock = field(default_factory=Clock)
    prober: Callable[[probes.Probe, probes.Endpoint], probes.Result] = probes.run
    # Who asked, for the lock, the hold and the log.
    by: str = "root"
    # The address that they came from, where that is known.
    origin: str = ""
    # The deploy's lock that the caller holds: see lock.py.
    token: str = ""
    # Numbers of the user and group that own what is sealed.
    owner: tuple[int, int] = (0, 0)
    # Takes a line about what is being done now.
    report: Callable[[str], None] = _silent

    def store(self, app: str) -> Store:
        """Return an app's changing state."""
        return Store(self.layout, app)

    def settings(self, app: str) -> dict[str, Any]:
        """Return what the playbooks say about the way of an app's changes; empty before they have said anything."""
        return read_json_object(self.layout.settings(app)) or {}

    def now(self) -> str:
        """Return the time as it is written into states and logs."""
        return iso(self.clock.now())

    def log(self, app: str, action: str, result: str, **more: Any) -> None:
        """Append to an app's log. A full disk must not fail what was done, so it is only said."""
        asked = {"by": self.by, **({"from": self.origin} if self.origin else {})}
        entry = {"time": self.now(), **asked, "action": action, "result": result, **more}
        try:
            self.store(app).log(entry)
        except OSError as error:
            self.report(f"could not write the log of {app}: {error}")
