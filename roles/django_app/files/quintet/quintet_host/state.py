"""What changes about an app: each generation's state, previous, hold, log. All below /var/lib/quintet/<app>."""

import json
import os
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from quintet_host.clock import iso
from quintet_host.files import read_json_object, sync_directory, write_json
from quintet_host.layout import Layout

STATES = ("building", "built", "good", "failed")


@dataclass(frozen=True)
class GenerationState:
    """One of STATES, or `unknown` when nothing readable is recorded; since when, and why if it failed."""

    state: str
    reason: str = ""
    since: str = ""


@dataclass(frozen=True)
class Hold:
    """A rollback's word to site.yml: keep this generation."""

    generation: str
    since: str
    by: str


@dataclass(frozen=True)
class Unconfirmed:
    """A switch that is taken back at `until` unless it is confirmed: to what, and what previous and hold were then."""

    generation: str
    before: str | None
    until: str
    previous: str | None
    hold: Hold | None
    # Of the deploy that is to confirm it.
    token: str = ""


@dataclass(frozen=True)
class AppState:
    """The good generation before the current one, the hold, and a switch that nobody has confirmed yet."""

    previous: str | None = None
    hold: Hold | None = None
    unconfirmed: Unconfirmed | None = None

    def holds(self, identifier: str) -> bool:
        """Say whether the hold names a generation."""
        return self.hold is not None and self.hold.generation == identifier

    @property
    def generations(self) -> set[str]:
        """The generations that it names: the app may go on with them, or back to them."""
        found, holds = {self.previous}, [self.hold]
        if self.unconfirmed:
            found |= {self.unconfirmed.generation, self.unconfirmed.before, self.unconfirmed.previous}
            holds.append(self.unconfirmed.hold)
        return {one for one in found if one} | {hold.generation for hold in holds if hold}


class Store:
    """Reads and writes one app's changing state; unreadable files count as absent, so that a boot never fails on one."""

    def __init__(self, layout: Layout, app: str) -> None:
        self.app = app
        self._layout = layout
        self._directory = layout.state(app)

    def generation(self, identifier: str) -> GenerationState:
        """Return a generation's state."""
        value = read_json_object(self._generation_file(identifier)) or {}
        if value.get("state") not in STATES:
            return GenerationState("unknown")
        return GenerationState(value["state"], str(value.get("reason", "")), str(value.get("since", "")))

    def mark(self, identifier: str, state: str, reason: str, now: datetime) -> bool:
        """Record a generation's state; `since` moves only with the state. Returns whether anything was written."""
        old = self.generation(identifier)
        if (old.state, old.reason) == (state, reason):
            return False
        since = old.since if old.state == state else iso(now)
        write_json(self._generation_file(identifier), asdict(GenerationState(state, reason, since)))
        return True

    def forget(self, identifier: str) -> None:
        """Remove a generation's state, and the probes that it answered."""
        self._layout.kept_probes(self.app, identifier).unlink(missing_ok=True)
        self._generation_file(identifier).unlink(missing_ok=True)

    def read(self) -> AppState:
        """Return what is recorded of the app."""
        value = read_json_object(self._directory / "app.json") or {}
        unconfirmed = value.get("unconfirmed")
        try:
            if unconfirmed:
                unconfirmed = Unconfirmed(**{**unconfirmed, "hold": _hold(unconfirmed["hold"])})
            return AppState(value.get("previous"), _hold(value.get("hold")), unconfirmed or None)
        except (KeyError, TypeError):
            return AppState(value.get("previous"))

    def write(self, state: AppState) -> None:
        """Record it."""
        if state != self.read():
            write_json(self._directory / "app.json", asdict(state))

    def log(self, entry: dict[str, Any]) -> None:
        """Append one line to the log."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._directory / "log"
        new = not path.exists()
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            # A line that a loss of power cut short must not swallow this one.
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            os.write(descriptor, (b"\n" if torn else b"") + json.dumps(entry).encode() + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if new:
            sync_directory(self._directory)

    def read_log(self) -> list[dict[str, Any]]:
        """Return the log's entries, oldest first; torn lines are left out."""
        entries = []
        try:
            lines = (self._directory / "log").read_text(errors="replace").splitlines()
        except OSError:
            return []
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                entries.append(entry)
        return entries

    def _generation_file(self, identifier: str) -> Path:
        return self._directory / "generations" / f"{identifier}.json"


def _hold(value: dict[str, str] | None) -> Hold | None:
    return Hold(**value) if value else None
