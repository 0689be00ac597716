"""Migrating an app's database with a generation's code, the dump before it, and the way back."""

import json
import os
import re
import shutil
import stat
from collections import deque
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

from quintet_host import transient
from quintet_host.errors import QuintetError, disk_advice
from quintet_host.files import read_json_object, sync_directory, write_json
from quintet_host.generation import Generation, load
from quintet_host.host import Host

KEEP_DUMPS = 3
DUMP_MAX_BYTES = 10 * 1024**3
LOCK_SECONDS = 10.0
DUMP_NAME = re.compile(r"([0-9a-f]{8}-[0-9a-f]{8})-[0-9]{8}T[0-9]{6}Z\.dump")
# What a dump in pg_dump's own format begins with.
DUMP_BEGINNING = b"PGDMP"
SHOWN_LINES = 20


@dataclass(frozen=True)
class Migrated:
    """What was applied (as in chat.0002_topic), and where the dump from before it is."""

    changed: bool
    applied: tuple[str, ...]
    dump: Path | None
    message: str


@dataclass(frozen=True)
class Settings:
    """What is wanted of an app's migrations; sizes are bytes, times seconds."""

    dumps: bool
    keep: int
    max_bytes: int
    lock_seconds: float

    @classmethod
    def of(cls, host: Host, app: str) -> "Settings":
        """Read them from the app's settings."""
        value = host.settings(app)
        dump = value.get("dump", {})
        return cls(
            dumps=bool(dump.get("enabled", True)),
            keep=int(dump.get("keep", KEEP_DUMPS)),
            max_bytes=int(dump.get("max_bytes", DUMP_MAX_BYTES)),
            lock_seconds=float(value.get("migration_lock_seconds", LOCK_SECONDS)),
        )


@dataclass
class _Dump:
    """A dump being written beside its name; it gets that once it is whole, whatever becomes of the migrations after it."""

    path: Path
    stream: IO[bytes]
    whole: bool = False

    @property
    def beside(self) -> Path:
        return self.path.with_name(f".{self.path.name}.part")

    def finish(self) -> None:
        os.fsync(self.stream.fileno())
        self.beside.rename(self.path)
        sync_directory(self.path.parent)
        self.whole = True


@dataclass
class _Listener:
    """Hears migrate_app.py: passes on what is for people, and keeps what is for this command."""

    host: Host
    dump: _Dump | None = None
    said: deque[str] = field(default_factory=lambda: deque(maxlen=200))
    end: dict[str, Any] = field(default_factory=dict)

    def __call__(self, line: str) -> None:
        event = _event(line)
        if not line:
            return
        if event is None:
            self.said.append(line)
            self.host.report(line)
        elif event["quintet"] == "dumped" and self.dump:
            self.dump.finish()
        elif event["quintet"] == "end":
            self.end = event


def plan(host: Host, app: str, generation: Generation) -> tuple[str, ...]:
    """Return the migrations that a generation's code has and the database does not, in their order; raises QuintetError.

    Those that can't be reversed are marked so.
    """
    listener = _Listener(host)
    done = _run(host, generation, ["plan", f"--lock-seconds={Settings.of(host, app).lock_seconds:g}"], listener)
    if not done.ok or not listener.end or listener.end.get("error"):
        _judged(host, generation, done, listener)
    irreversible = listener.end.get("irreversible", [])
    return tuple(
        f"{name} (can't be reversed)" if name in irreversible else name for name in listener.end.get("plan", [])
    )


def migrate(host: Host, app: str, generation: Generation) -> Migrated:
    """Apply what a generation's code has and the database does not, after a dump; raises QuintetError.

    To be called with the app's lock held. What was applied, and still is, is recorded in the app's migrations.json.
    """
    settings = Settings.of(host, app)
    arguments = ["migrate", f"--lock-seconds={settings.lock_seconds:g}"]
    if not settings.dumps:
        listener = _Listener(host)
        done = _run(host, generation, arguments, listener)
        return _judged(host, generation, done, listener)
    directory = _directory(host, app)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for left in directory.glob(".*.part"):
        left.unlink()
    arguments += ["--dump", f"--dump-max-bytes={settings.max_bytes}"]
    arguments += [f"--dump-free-bytes={shutil.disk_usage(directory).free}"]
    moment = host.clock.now().strftime("%Y%m%dT%H%M%SZ")
    path = directory / f"{generation.identifier}-{moment}.dump"
    beside = path.with_name(f".{path.name}.part")
    try:
        with open(beside, "xb", opener=_private) as stream:
            listener = _Listener(host, _Dump(path, stream))
            done = _run(host, generation, arguments, listener, stdout=stream)
    finally:
        beside.unlink(missing_ok=True)
    migrated = _judged(host, generation, done, listener)
    _prune_dumps(host, app, settings)
    return migrated


def restore(host: Host, app: str, path: Path) -> None:
    """Put the app's database back as one of its dumps has it; raises QuintetError, and then nothing has changed.

    It runs with the current generation's settings, in one transaction; what serves goes on and waits where it must.
    """
    path = _own_dump(host, app, path)
    current = host.layout.current_id(app) or path.name[:17]
    generation = load(host.layout, app, current)
    listener = _Listener(host)
    host.report(f"putting the database of {app} back to {path.name}; requests that need it wait until that is done")
    with path.open("rb") as stream:
        arguments = ["restore", f"--lock-seconds={Settings.of(host, app).lock_seconds:g}"]
        done = _run(host, generation, arguments, listener, stdin=stream)
    _record(host, app, listener)
    # A process that was told to stop ends well, too, but it does not say that it has come to its end.
    if not done.ok or not listener.end or listener.end.get("error"):
        error = _error(listener, f"restoring the dump ended with code {done.code}")
        raise QuintetError(
            f"{app}: {error['what']}",
            f"{error['where']} The dump: {path}.".strip(),
            error["remedy"],
            list(listener.said)[-SHOWN_LINES:],
        )


def prune_dumps(host: Host, app: str) -> list[str]:
    """Remove all dumps but the newest that are to be kept, in number and in size; returns their names."""
    return _prune_dumps(host, app, Settings.of(host, app))


def _prune_dumps(host: Host, app: str, settings: Settings) -> list[str]:
    directory = _directory(host, app)
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    # Their names begin with the generation's id; what follows it is the time.
    dumps = sorted((name for name in names if DUMP_NAME.fullmatch(name)), key=lambda name: name[18:], reverse=True)
    sizes = accumulate((directory / name).stat().st_size for name in dumps)
    # The newest stays however large it is: it is the way back from the last migration.
    kept = 1 + sum(size <= settings.max_bytes for size in list(sizes)[1 : settings.keep])
    for name in dumps[kept:]:
        (directory / name).unlink()
    return sorted(dumps[kept:])


def _run(
    host: Host,
    generation: Generation,
    arguments: list[str],
    listener: _Listener,
    *,
    stdin: IO[bytes] | None = None,
    stdout: IO[bytes] | None = None,
) -> transient.Result:
    script = generation.path / "units/migrate_app.py"
    if not script.is_file():
        raise QuintetError(
            f"{generation.app}: generation {generation.identifier} can't migrate a database.",
            f"{script} is missing: an earlier version of Quintet built this generation.",
            "Build it again: run the playbook that deploys this app.",
        )
    command = [f"{generation.path}/venv/bin/python", str(script), *arguments]
    owner = host.settings(generation.app).get("database_owner")
    if owner:
        generation, variables = _as_owner(generation, owner, transient.unit(arguments[0], generation.app))
        # Not by the unit: what its EnvironmentFile= says of a variable would win.
        command = ["/usr/bin/env", *variables, *command]
    return transient.run(
        host,
        generation,
        command,
        name=arguments[0],
        timeout_seconds=None,
        stdin=stdin,
        stdout=stdout,
        heard=listener,
    )


def _as_owner(generation: Generation, owner: dict[str, str], unit: str) -> tuple[Generation, list[str]]:
    """Return the generation as its database's owner runs it, and the variables that say so; raises QuintetError.

    The key is for this unit alone. Its processes have the app's user, and the kernel lets no process of the running app look into them:
    they have another user namespace (PrivateUsers=), and, for a sandbox without it, another group first (ptrace(2), access modes).
    """
    paths = {name: Path(owner[name]) for name in ("certificate", "key")}
    for path in paths.values():
        if not path.is_file():
            raise QuintetError(
                f"{generation.app}: this host can't log in as the owner of the database.",
                f"{path} is missing.",
                "Run site.yml, which has it made.",
            )
    # Where the app looks for a variable when there is no file.
    own = ("DATABASE_URL", "DATABASE_DIRECT_URL")
    kept = [line for line in generation.properties if not line.startswith(tuple(f"LoadCredential={n}:" for n in own))]
    kept += [f"LoadCredential=database-owner-{name}:{path}" for name, path in paths.items()]
    there = f"/run/credentials/{unit}/database-owner-"
    url = f"{owner['url']}&sslcert={there}certificate&sslkey={there}key"
    changed = replace(generation, group=owner["group"], properties=(*kept, f"SupplementaryGroups={generation.group}"))
    return changed, [f"{name}={url}" for name in own]


def _judged(host: Host, generation: Generation, done: transient.Result, listener: _Listener) -> Migrated:
    """Return what was done, or raise QuintetError with what failed, what was applied all the same, and the way back."""
    app = generation.app
    _record(host, app, listener)
    applied = tuple(listener.end.get("applied", ()))
    dump = listener.dump.path if listener.dump and listener.dump.whole else None
    if done.ok and listener.end and not listener.end.get("error"):
        message = f"{app}: applied {', '.join(applied)}." if applied else f"{app}: no migrations to apply."
        return Migrated(bool(applied), applied, dump, message + (f" Dump from before: {dump}" if dump else ""))
    error = _error(listener, f"the migrations of generation {generation.identifier} ended with code {done.code}")
    where, remedy = [error["where"]], [error["remedy"]]
    plan = listener.end.get("plan", [])
    if plan and error["step"] in ("migrate", "end"):
        where.append(f"Applied of {', '.join(plan)}: {', '.join(applied) or 'nothing'}. What served before still does.")
    else:
        where.append("Nothing was migrated; what served before still does.")
    if error["step"] == "space":
        remedy.insert(0, disk_advice(app))
        old = [path.name for path in _directory(host, app).glob("*.dump")]
        if old:
            remedy.append(f"Dumps that could go, in {_directory(host, app)}: {', '.join(sorted(old))}.")
    if dump:
        remedy.append(f"To have the database as it was before: quintet restore {app} {dump}")
    raise QuintetError(
        f"{app}: {error['what']}",
        "\n".join(filter(None, where)),
        "\n".join(filter(None, remedy)),
        list(listener.said)[-SHOWN_LINES:],
    )


def _error(listener: _Listener, otherwise: str) -> dict[str, str]:
    """Return what migrate_app.py said was wrong, or, when it could not say anything, what is known from outside."""
    found = listener.end.get("error")
    if found:
        return {name: str(found.get(name, "")) for name in ("step", "what", "where", "remedy")}
    return {"step": "end", "what": f"{otherwise}.", "where": "", "remedy": "See the lines below, then deploy again."}


def _record(host: Host, app: str, listener: _Listener) -> None:
    """Add what was applied to what was before and still is.

    Not all that the database has: rows of migrations whose code is long gone would be in the way of each rollback.
    """
    known = listener.end.get("known")
    if not isinstance(known, dict):
        return
    path = host.layout.state(app) / "migrations.json"
    before = read_json_object(path) or {}
    now = listener.end.get("applied", [])
    recorded = {
        label: [name for name in names if name in before.get(label, ()) or f"{label}.{name}" in now]
        for label, names in known.items()
    }
    recorded = {label: names for label, names in recorded.items() if names}
    if recorded != before:
        write_json(path, recorded)


def _event(line: str) -> dict[str, Any] | None:
    if not line.startswith('{"quintet": '):
        return None
    try:
        value: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return value


def _own_dump(host: Host, app: str, path: Path) -> Path:
    """Return the path of one of the app's dumps, of which the name is enough; raises QuintetError for all else."""
    directory = _directory(host, app)
    wanted = directory / path  # an absolute path stays what it is
    there = ", ".join(sorted(one.name for one in directory.glob("*.dump"))) or "none"
    wrong = ""
    if wanted.parent != directory or not DUMP_NAME.fullmatch(wanted.name):
        wrong = "is not one of its dumps"
    elif not wanted.is_file() or wanted.is_symlink():
        wrong = "does not exist"
    else:
        found = wanted.stat()
        with wanted.open("rb") as stream:
            begins = stream.read(len(DUMP_BEGINNING)) == DUMP_BEGINNING
        if not begins:
            wrong = "is not what pg_dump writes"
        elif found.st_uid != host.owner[0] or stat.S_IMODE(found.st_mode) & 0o022:
            wrong = "could have been written by others than root"
    if wrong:
        raise QuintetError(
            f"{app}: {path} {wrong}, so it is not restored.",
            f"Dumps of {app} are in {directory}: {there}.",
            f"Name one of them: quintet restore {app} FILE",
        )
    return wanted


def _directory(host: Host, app: str) -> Path:
    return host.layout.state(app) / "dumps"


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
