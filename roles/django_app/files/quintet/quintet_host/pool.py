"""The pool of static files: what pages of earlier generations may still ask for, after the switch and after pruning.

/srv/<app>/static-pool holds a hard link to each static file of each generation that served, under the path of its URL.
pool.json in the app's state says which generation brought which files, and since when it has not served.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from quintet_host.files import read_json_object, write_json
from quintet_host.generation import Generation
from quintet_host.host import Host

DAYS = 30.0
MAX_BYTES = 1024**3


@dataclass(frozen=True)
class Entry:
    """What one generation brought, and since when it has not served (while it serves: since when it did)."""

    since: datetime
    names: tuple[str, ...]


def add(host: Host, generation: Generation) -> None:
    """Put a generation's static files into the pool; to be called before the switch to it. Raises OSError."""
    source, target = generation.path / "static", _directory(host, generation.app)
    names = tuple(sorted(_names(source)))
    if not names:
        return
    # The list first: what no list names is nobody's to prune.
    entries = _read(host, generation.app)
    entries[generation.identifier] = Entry(host.clock.now(), names)
    _write(host, generation.app, entries)
    for name in names:
        _link(source / name, target / name)


def left(host: Host, app: str, identifier: str | None, now: datetime) -> None:
    """Note that a generation no longer serves: from now on the age of what it brought counts."""
    entries = _read(host, app)
    if identifier is not None and identifier in entries:
        entries[identifier] = Entry(now, entries[identifier].names)
        _write(host, app, entries)


def prune(host: Host, app: str, days: float | None = None, max_bytes: int | None = None) -> list[str]:
    """Remove what only generations brought that have not served for `days`, then more, oldest first, down to `max_bytes`.

    Both are as the app's settings say where they are None. The size is that of the files that no generation has
    which serves, or which the app's state names; theirs stay. Returns the removed files' paths below the pool.
    """
    wanted = host.settings(app).get("static_pool", {})
    days = float(wanted.get("days", DAYS)) if days is None else days
    max_bytes = int(wanted.get("max_bytes", MAX_BYTES)) if max_bytes is None else max_bytes
    directory, entries = _directory(host, app), _read(host, app)
    current = host.layout.current_id(app)
    needed = host.store(app).read().generations | ({current} if current else set())
    sizes = {name: (directory / name).lstat().st_size for name in _names(directory)}
    remaining = {name for one in needed for name in _names(host.layout.generation(app, one) / "static")}
    oldest, room = host.clock.now() - timedelta(days=days), max_bytes
    # The newest first: each takes room for what neither a newer one nor one in need has.
    for identifier, entry in sorted(entries.items(), key=lambda item: item[1].since, reverse=True):
        if identifier in needed:
            continue
        own = (set(entry.names) & sizes.keys()) - remaining
        room -= sum(sizes[name] for name in own)
        if room < 0 or entry.since < oldest:
            del entries[identifier]
        else:
            # What a newer one has, too, is kept for that one's sake; so the list grows with the files, not with the switches.
            entries[identifier] = Entry(entry.since, tuple(sorted(own)))
            remaining |= own
    removed = sorted(sizes.keys() - remaining)
    for name in removed:
        (directory / name).unlink()
    _remove_empty(directory)
    if entries != _read(host, app):
        _write(host, app, entries)
    return removed


def _directory(host: Host, app: str) -> Path:
    return host.layout.app(app) / "static-pool"


def _names(directory: Path) -> Iterator[str]:
    """Yield the paths below a directory of its plain files, without hidden ones, which Nginx refuses."""
    for where, directories, files in os.walk(directory):
        directories[:] = [name for name in directories if not name.startswith(".")]
        for name in files:
            path = Path(where, name)
            if not name.startswith(".") and path.is_file() and not path.is_symlink():
                yield str(path.relative_to(directory))


def _link(source: Path, target: Path) -> None:
    """Link a file into the pool, in the place of another generation's of the same name."""
    _make_directory(target.parent)
    if target.is_dir():
        shutil.rmtree(target)
    if target.exists() and source.samefile(target):
        return
    beside = target.with_name(".new")
    beside.unlink(missing_ok=True)
    try:
        os.link(source, beside)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copy2(source, beside)  # the generations are on a file system of their own
    beside.replace(target)


def _make_directory(path: Path) -> None:
    if path.is_dir():
        return
    _make_directory(path.parent)
    path.unlink(missing_ok=True)
    path.mkdir()
    path.chmod(0o755)  # the umask of a command of root's leaves Nginx out


def _remove_empty(directory: Path) -> None:
    for where, _, _ in os.walk(directory, topdown=False):
        path = Path(where)
        if path != directory and not any(path.iterdir()):
            path.rmdir()


def _file(host: Host, app: str) -> Path:
    return host.layout.state(app) / "pool.json"


def _read(host: Host, app: str) -> dict[str, Entry]:
    value = read_json_object(_file(host, app)) or {}
    try:
        return {
            identifier: Entry(datetime.fromisoformat(one["since"]), tuple(one["files"]))
            for identifier, one in value.items()
        }
    except (KeyError, TypeError, ValueError):
        return {}


def _write(host: Host, app: str, entries: dict[str, Entry]) -> None:
    value = {
        identifier: {"since": entry.since.isoformat(), "files": entry.names} for identifier, entry in entries.items()
    }
    write_json(_file(host, app), value)
