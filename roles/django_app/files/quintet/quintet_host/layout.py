"""Where everything is on a host."""

import re
from dataclasses import dataclass
from pathlib import Path

APP_NAME = re.compile(r"[a-z][a-z0-9_]{0,23}")
RELEASE = re.compile(r"[0-9a-f]{8}")
GENERATION_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{8}")


@dataclass(frozen=True)
class Layout:
    """The paths of docs/architecture.md below `root`; tests give another root."""

    root: Path = Path("/")

    def app(self, app: str) -> Path:
        """Return the directory of the app's generations, virtual environments and shared files."""
        return self.root / "srv" / app

    def generations(self, app: str) -> Path:
        """Return the directory with one entry a generation."""
        return self.app(app) / "generations"

    def generation(self, app: str, identifier: str) -> Path:
        """Return one generation's directory."""
        return self.generations(app) / identifier

    def venvs(self, app: str) -> Path:
        """Return the directory of the virtual environments that generations share."""
        return self.app(app) / "venvs"

    def current(self, app: str) -> Path:
        """Return the link whose rename is the switch."""
        return self.app(app) / "current"

    def run(self, app: str, identifier: str) -> Path:
        """Return the directory of a generation's sockets."""
        return self.root / "run/quintet" / app / identifier

    def configuration(self, app: str) -> Path:
        """Return the root-only directory of revisions and probes."""
        return self.root / "etc/quintet" / app

    def settings(self, app: str) -> Path:
        """Return the file of what the playbooks say about the way of changes."""
        return self.configuration(app) / "settings.json"

    def state(self, app: str) -> Path:
        """Return the directory of what changes: states, lock, log."""
        return self.root / "var/lib/quintet" / app

    def kept_probes(self, app: str, identifier: str) -> Path:
        """Return the file of the probes with which a generation became good."""
        return self.state(app) / "probes" / f"{identifier}.json"

    def lease(self, app: str) -> Path:
        """Return the file of a deploy's lock, where no reboot keeps it."""
        return self.root / "run/quintet" / app / "deploy.json"

    def gate(self, app: str) -> Path:
        """Return the piece of Nginx's configuration that is there while nobody is let in, where each boot begins without it."""
        return self.root / "run/quintet" / app / "gate.conf"

    def maintenance(self, app: str) -> Path:
        """Return the mark that an app's site is in maintenance; Nginx looks for it at each request."""
        return self.root / "var/lib/quintet-edge" / f"{app}.maintenance"

    def edge_site(self, app: str) -> Path:
        """Return the file of an app's site in Nginx's live tree; on a host that is no edge there is none."""
        return self.root / "etc/nginx/quintet/sites" / f"{app}.conf"

    @property
    def unit_links(self) -> Path:
        """The directory from which systemd reads units until the next boot."""
        return self.root / "run/systemd/system"

    def apps(self) -> list[str]:
        """Return the names of all apps that have generations here, sorted."""
        found = (path.parent.name for path in self.root.glob("srv/*/generations"))
        return sorted(name for name in found if APP_NAME.fullmatch(name))

    def generation_ids(self, app: str) -> list[str]:
        """Return the ids of all generations that are on disk, sorted."""
        if not self.generations(app).is_dir():
            return []
        names = (path.name for path in self.generations(app).iterdir())
        return sorted(name for name in names if GENERATION_ID.fullmatch(name))

    def current_id(self, app: str) -> str | None:
        """Return the id that `current` names, None when nothing was switched to yet."""
        try:
            name = self.current(app).readlink().name
        except OSError:
            return None
        return name if GENERATION_ID.fullmatch(name) else None
