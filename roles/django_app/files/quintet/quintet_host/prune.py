"""Dropping old generations, and the virtual environments and revisions that only they used."""

import shutil
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from quintet_host import units
from quintet_host.generation import Generation, find
from quintet_host.host import Host
from quintet_host.lock import locked

KEEP_GOOD = 3
# Of those that never served, for inspection.
KEEP_OTHERS = 2
# What is younger may still be being built, or be about to be switched to.
YOUNG = timedelta(hours=1)
REMOVED_SUFFIX = ".pruned"


@dataclass
class Pruned:
    """What was removed."""

    generations: list[str] = field(default_factory=list)
    venvs: list[str] = field(default_factory=list)
    revisions: list[str] = field(default_factory=list)

    def public(self) -> dict[str, Any]:
        """Return what --json shows."""
        changed = bool(self.generations or self.venvs or self.revisions)
        return {
            "changed": changed,
            "generations": self.generations,
            "venvs": self.venvs,
            "revisions": self.revisions,
        }


def prune(host: Host, app: str, keep: int = KEEP_GOOD) -> Pruned:
    """Remove all but the newest `keep` good generations and what else is in use or young; raises when locked."""
    done = Pruned()
    with locked(host, app, f"prune {app}"):
        _finish_earlier_removals(host, app)
        for identifier in _removable(host, app, keep):
            _remove_generation(host, app, identifier)
            done.generations.append(identifier)
        remaining = host.layout.generation_ids(app)
        done.venvs = _prune_venvs(host, app, remaining)
        done.revisions = _prune_revisions(host, app, remaining)
    if done.public()["changed"]:
        host.log(app, "prune", "ok", generations=done.generations, venvs=done.venvs, revisions=done.revisions)
    return done


def _removable(host: Host, app: str, keep: int) -> list[str]:
    store = host.store(app)
    state = store.read()
    needed = {host.layout.current_id(app), state.previous, state.hold.generation if state.hold else None}
    good: list[tuple[str, str]] = []
    others: list[tuple[str, str]] = []
    for identifier in host.layout.generation_ids(app):
        generation = find(host.layout, app, identifier)
        is_good = store.generation(identifier).state == "good"
        # One that can't say when it was built counts as the oldest.
        (good if is_good else others).append((generation.built_at if generation else "", identifier))
    old = sorted(good, reverse=True)[keep:] + sorted(others, reverse=True)[KEEP_OTHERS:]
    return sorted(one for _, one in old if one not in needed and not _in_use(host, app, one))


def _in_use(host: Host, app: str, identifier: str) -> bool:
    state = host.store(app).generation(identifier).state
    if state not in ("good", "failed") and _is_young(host, host.layout.generation(app, identifier)):
        return True
    generation = find(host.layout, app, identifier)
    if generation is not None:
        return units.is_running(host, generation)
    drain = units.drain_unit(app, identifier)
    return host.system.states([drain])[drain] not in units.STOPPED


def _is_young(host: Host, path: Path) -> bool:
    # The time of the last change of the inode: unlike mtime, no builder or archive can set it.
    changed = datetime.fromtimestamp(path.lstat().st_ctime, tz=host.clock.now().tzinfo)
    return host.clock.now() - changed < YOUNG


def _remove_generation(host: Host, app: str, identifier: str) -> None:
    path = host.layout.generation(app, identifier)
    generation: Generation | None = find(host.layout, app, identifier)
    if generation is not None:
        units.stop(host, generation)  # nothing runs any more; this takes leftover links and sockets away
    # Renamed first, so that a killed run leaves no half generation under a name that counts.
    removed = path.with_name(f".{identifier}{REMOVED_SUFFIX}")
    path.rename(removed)
    shutil.rmtree(removed)
    host.store(app).forget(identifier)


def _finish_earlier_removals(host: Host, app: str) -> None:
    for path in host.layout.generations(app).glob(f".*{REMOVED_SUFFIX}"):
        shutil.rmtree(path)


def _prune_venvs(host: Host, app: str, remaining: list[str]) -> list[str]:
    links = (host.layout.generation(app, identifier) / "venv" for identifier in remaining)
    used = {link.readlink().name for link in links if link.is_symlink()}
    removed = []
    directory = host.layout.venvs(app)
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        if path.is_dir() and not path.is_symlink() and path.name not in used and not _is_young(host, path):
            # First, so that what a killed removal leaves never counts as whole.
            (path / ".complete").unlink(missing_ok=True)
            shutil.rmtree(path)
            removed.append(path.name)
    return removed


def _prune_revisions(host: Host, app: str, remaining: list[str]) -> list[str]:
    found = [find(host.layout, app, identifier) for identifier in remaining]
    generations = [generation for generation in found if generation is not None]
    directory = host.layout.configuration(app) / "revisions"
    if len(generations) < len(found) or not directory.is_dir():
        return []  # one that is being built does not say yet which revision it uses
    numbers = sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())
    # The newest may be written for a generation that is not there yet.
    used = {generation.revision for generation in generations} | set(numbers[-1:])
    removed = []
    for number in numbers:
        if number not in used:
            shutil.rmtree(directory / str(number))
            removed.append(str(number))
    return removed
