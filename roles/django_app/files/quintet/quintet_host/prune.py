"""Dropping old generations, what only they used, and what grows beside them: dumps, pooled files, the installer's cache."""

import os
import shutil
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from quintet_host import migrate, pool, units
from quintet_host.generation import Generation, find
from quintet_host.host import Host
from quintet_host.lock import locked

KEEP_GOOD = 3
# Of those that never served, for inspection.
KEEP_OTHERS = 2
# What is younger may still be being built, or be about to be switched to.
YOUNG = timedelta(hours=1)
REMOVED_SUFFIX = ".pruned"
# Of uv's cache, which is made anew as needed.
CACHE_MAX_BYTES = 2 * 1024**3


@dataclass
class Pruned:
    """What was removed, by name."""

    generations: list[str] = field(default_factory=list)
    venvs: list[str] = field(default_factory=list)
    revisions: list[str] = field(default_factory=list)
    dumps: list[str] = field(default_factory=list)
    static_files: list[str] = field(default_factory=list)
    caches: list[str] = field(default_factory=list)

    def public(self) -> dict[str, Any]:
        """Return what --json shows."""
        return {"changed": any(vars(self).values()), **vars(self)}


def prune(host: Host, app: str, keep: int | None = None) -> Pruned:
    """Remove all but the newest `keep` good generations and what else is in use or young; raises when locked.

    Without `keep` as many stay as the app's settings say.
    """
    done = Pruned()
    keep = int(host.settings(app).get("keep_generations", KEEP_GOOD)) if keep is None else keep
    with locked(host, app, f"prune {app}"):
        _finish_earlier_removals(host, app)
        _remove_half_written_secrets(host, app)
        for identifier in _removable(host, app, keep):
            _remove_generation(host, app, identifier)
            done.generations.append(identifier)
        remaining = host.layout.generation_ids(app)
        done.venvs = _prune_venvs(host, app, remaining)
        done.revisions = _prune_revisions(host, app, remaining)
        done.dumps = migrate.prune_dumps(host, app)
        done.static_files = pool.prune(host, app)
        done.caches = _prune_cache(host, app)
    if done.public()["changed"]:
        counted = {**vars(done), "static_files": len(done.static_files)}
        host.log(app, "prune", "ok", **{name: what for name, what in counted.items() if what})
    return done


def _removable(host: Host, app: str, keep: int) -> list[str]:
    store = host.store(app)
    good: list[tuple[str, str]] = []
    others: list[tuple[str, str]] = []
    # Of a build that was killed there is nothing to inspect, and the next one begins anew.
    old: list[str] = []
    for identifier in host.layout.generation_ids(app):
        generation = find(host.layout, app, identifier)
        # One that can't say when it was built counts as the oldest.
        dated = (generation.built_at if generation else "", identifier)
        match store.generation(identifier).state:
            case "good":
                good.append(dated)
            case "building":
                old.append(identifier)
            case _:
                others.append(dated)
    old += [one for _, one in sorted(good, reverse=True)[keep:] + sorted(others, reverse=True)[KEEP_OTHERS:]]
    needed = store.read().generations | {host.layout.current_id(app)}
    return sorted(one for one in old if one not in needed and not _in_use(host, app, one))


def _in_use(host: Host, app: str, identifier: str) -> bool:
    state = host.store(app).generation(identifier).state
    if state not in ("good", "failed") and _is_young(host, host.layout.generation(app, identifier)):
        return True
    if host.system.is_any_active(units.attached_units(app, identifier)):
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
        host.store(app).forget(path.name[1:].removesuffix(REMOVED_SUFFIX))


def _remove_half_written_secrets(host: Host, app: str) -> None:
    # What the module app_environment has staged and not put in its place, as its run was killed.
    directory = host.layout.configuration(app)
    for path in (*directory.glob(".new-*"), *directory.glob("revisions/.new-*")):
        if _is_young(host, path):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


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


def _prune_cache(host: Host, app: str) -> list[str]:
    path = host.layout.root / "var/cache/quintet" / app / "uv"
    # Its user may have made it anything.
    if path.is_symlink() or not path.is_dir() or _bytes(path) <= CACHE_MAX_BYTES:
        return []
    shutil.rmtree(path)
    return [str(path)]


def _bytes(path: Path) -> int:
    """Return the size of all files below a directory, links not followed."""
    return sum(Path(where, name).lstat().st_size for where, _, names in os.walk(path) for name in names)
