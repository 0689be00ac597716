"""Migrates an app's database, or puts it back: one process from the lock to the last migration.

Runs as the app's user, with the app's own Python and environment, in the source's directory. `plan` changes nothing; `migrate`
writes the dump to standard output; `restore` reads one from standard input. What people read is on standard error, and with it
lines of JSON that have a member `quintet`: {"quintet": "dumped"} once the dump is whole, and as the last line {"quintet": "end",
"plan": [...], "irreversible": [...], "applied": [...], "known": {"<app label>": ["<name>", ...]} | null, "error": {...} | null}.
Exits with 1 when there is an error: what, where, remedy, and the step in which it came up.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# Both halves of the key of PostgreSQL's advisory lock; such locks belong to one database.
LOCK_KEY = tuple(
    int.from_bytes(hashlib.sha256(word).digest()[:4], "big", signed=True) for word in (b"quintet", b"migrate")
)
RETRY_SECONDS = 0.5

# Of a dump's contents, what only a superuser may set and what no restore takes away.
KEPT_ENTRIES = re.compile(r"\d+; \d+ \d+ (ACL|COMMENT) - (EXTENSION \S+|SCHEMA public) ")

# All that this user, or a role that it is in, owns, and no extension brought: what came after the dump must not stay.
# Tables first, as they take their own sequences along; what is part of another object goes with that.
CLEAR = """
DO $$
DECLARE
    command text;
BEGIN
    FOREACH command IN ARRAY ARRAY(
        SELECT format('DROP %s IF EXISTS %s CASCADE', kind, name) FROM (
            SELECT CASE relkind WHEN 'v' THEN 2 WHEN 'm' THEN 2 WHEN 'f' THEN 2 WHEN 'S' THEN 3 ELSE 1 END,
                CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'f' THEN 'FOREIGN TABLE'
                    WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END,
                format('%I.%I', nspname, relname), nspname, relowner, 'pg_class'::regclass, pg_class.oid
            FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
            WHERE relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
            UNION ALL
            SELECT 4, 'ROUTINE', pg_proc.oid::regprocedure::text, nspname, proowner, 'pg_proc'::regclass, pg_proc.oid
            FROM pg_proc JOIN pg_namespace ON pg_namespace.oid = pronamespace
            UNION ALL
            SELECT 5, 'TYPE', format('%I.%I', nspname, typname), nspname, typowner, 'pg_type'::regclass, pg_type.oid
            FROM pg_type JOIN pg_namespace ON pg_namespace.oid = typnamespace LEFT JOIN pg_class ON pg_class.oid = typrelid
            WHERE typtype IN ('e', 'd', 'r') OR relkind = 'c'
            UNION ALL
            SELECT 6, 'SCHEMA', quote_ident(nspname), nspname, nspowner, 'pg_namespace'::regclass, oid
            FROM pg_namespace WHERE nspname <> 'public'
        ) AS found (rank, kind, name, space, owner, catalog, identifier)
        WHERE space NOT LIKE 'pg\\_%' AND space <> 'information_schema' AND pg_has_role(owner, 'USAGE')
            AND NOT EXISTS (
                SELECT FROM pg_depend WHERE classid = catalog AND objid = identifier AND deptype IN ('e', 'i')
            )
        ORDER BY rank
    )
    LOOP
        EXECUTE command;
    END LOOP;
END
$$
"""


class Problem(Exception):
    """What is wrong, where, and what to do, and the step.

    That is settings, database, lock, dump, space (when a dump may lack it), migrate or restore.
    """

    def __init__(self, step: str, what: str, where: str, remedy: str) -> None:
        super().__init__(what)
        self.public = {"step": step, "what": what, "where": where, "remedy": remedy}


@dataclass
class Outcome:
    """What is told at the end."""

    plan: list[str] = field(default_factory=list)
    irreversible: list[str] = field(default_factory=list)
    applied: list[str] = field(default_factory=list)
    known: dict[str, list[str]] | None = None
    error: dict[str, str] | None = None


def say(line: str) -> None:
    """Write a line for people."""
    print(line, file=sys.stderr, flush=True)


def tell(event: str, **more: Any) -> None:
    """Write a line for the host command, after whatever a migration has left unended."""
    say("\n" + json.dumps({"quintet": event, **more}))


def place(connection: Any) -> str:
    """Return which database a connection leads to, without its password."""
    settings = connection.settings_dict
    port = f":{settings['PORT']}" if settings["PORT"] else ""
    return f"Database {settings['NAME']} at {settings['HOST'] or 'this host'}{port} ({connection.vendor})."


def query(connection: Any, text: str, *parameters: object) -> list[Any]:
    """Return the rows that a query gives."""
    with connection.cursor() as cursor:
        cursor.execute(text, parameters or None)
        return list(cursor.fetchall())


def limit_waits(seconds: float) -> None:
    """Let no statement wait longer for a lock: all who read the table would queue up behind it."""
    from django.db.backends.signals import connection_created

    def limit(connection: Any, **_more: Any) -> None:
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute(f"SET lock_timeout = {int(seconds * 1000)}")

    connection_created.connect(limit, weak=False)


@contextmanager
def locked(connection: Any, seconds: float) -> Iterator[None]:
    """Hold the database's advisory lock, on a connection of its own; raises Problem when another session keeps it."""
    if connection.vendor != "postgresql":
        yield
        return
    keeper = connection.copy()
    try:
        name = f"quintet {os.environ.get('QUINTET_GENERATION', '')} on {os.uname().nodename}"
        query(keeper, "SELECT set_config('application_name', %s, false)", name[:63])
        deadline = time.monotonic() + seconds
        while not query(keeper, "SELECT pg_try_advisory_lock(%s, %s)", *LOCK_KEY)[0][0]:
            if time.monotonic() >= deadline:
                raise Problem(
                    "lock",
                    f"Another session migrates the database and did not end within {seconds:g} s: {holder(keeper)}.",
                    place(connection),
                    "Wait for it to end, or end it with SELECT pg_terminate_backend(PROCESS), then try again.",
                )
            time.sleep(RETRY_SECONDS)
        yield
    finally:
        keeper.close()


def holder(connection: Any) -> str:
    """Return who has the advisory lock."""
    rows = query(
        connection,
        "SELECT pid, usename, application_name, client_addr, backend_start FROM pg_locks"
        " JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory' AND granted AND objsubid = 2"
        " AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        " AND classid = %s AND objid = %s",
        *(half % 2**32 for half in LOCK_KEY),
    )
    if not rows:
        return "one that has just gone"
    process, user, application, address, since = rows[0]
    return (
        f"process {process} of {user}, '{application}', from {address or 'the local socket'}"
        f" since {since or 'a time that only its own user sees'}"
    )


def planned(connection: Any) -> list[Any]:
    """Return the migrations that are to be applied, in their order."""
    from django.db.migrations.executor import MigrationExecutor

    executor = MigrationExecutor(connection)
    executor.loader.check_consistent_history(connection)
    return [migration for migration, _ in executor.migration_plan(executor.loader.graph.leaf_nodes())]


def name_of(migration: Any) -> str:
    """Return chat.0002_topic of a migration."""
    return f"{migration.app_label}.{migration.name}"


def show(plan: list[Any], connection: Any, outcome: Outcome) -> None:
    """Note the plan and write it."""
    outcome.plan = [name_of(migration) for migration in plan]
    outcome.irreversible = [
        name_of(migration) for migration in plan if not all(operation.reversible for operation in migration.operations)
    ]
    if not plan:
        say("No migrations to apply.")
        return
    say(f"To be applied, {len(plan)}. {place(connection)}")
    for name in outcome.plan:
        say(f"  {name}" + (" (can't be reversed)" if name in outcome.irreversible else ""))


def applied(connection: Any) -> dict[str, list[str]]:
    """Return the migrations that the database has, without those that a squashed one has taken the place of."""
    from django.db.migrations.loader import MigrationLoader

    loader = MigrationLoader(connection, ignore_no_migrations=True)
    replaced = {
        node for key, one in loader.replacements.items() if key in loader.applied_migrations for node in one.replaces
    }
    found: dict[str, list[str]] = {}
    for label, name in sorted(loader.applied_migrations):
        if (label, name) not in replaced:
            found.setdefault(label, []).append(name)
    return found


def program(name: str, step: str) -> str:
    """Return where one of PostgreSQL's programs is; raises Problem when it is not here."""
    path = shutil.which(name)
    if path is None:
        raise Problem(
            step,
            f"The database can't be dumped or restored: this host has no {name}.",
            f"Looked in {os.environ.get('PATH')}.",
            "Install postgresql-client of the server's version, or set the app's dump.enabled to false.",
        )
    return path


def connected(connection: Any, name: str, step: str, *options: str) -> tuple[list[str], dict[str, str]]:
    """Return command and environment of a program of PostgreSQL's, connected as Django is; no password in the command."""
    settings = connection.settings_dict
    words, environment = connection.client.settings_to_cmd_args_env(settings, [])
    words = words[1:-1] if settings["NAME"] else words[1:]
    command = [program(name, step), "--no-password", *options, *words, f"--dbname={settings['NAME'] or ''}"]
    return command, {**os.environ, **(environment or {})}


def dump(connection: Any, output: int, arguments: argparse.Namespace) -> None:
    """Write a dump to a descriptor; raises Problem when that can't be done, or would be too large."""
    off = "set the app's dump.enabled to false if its database is backed up otherwise."
    if connection.vendor != "postgresql":
        raise Problem(
            "dump",
            f"A dump before migrations is wanted, but of {connection.vendor} none can be made.",
            place(connection),
            off.capitalize(),
        )
    if not connection.introspection.table_names():
        say("The database is empty: nothing to dump.")
        return
    size = query(connection, "SELECT pg_database_size(current_database())")[0][0]
    if size > arguments.dump_max_bytes:
        raise Problem(
            "dump",
            f"The database has {size / 2**20:.0f} MiB, more than the {arguments.dump_max_bytes / 2**20:.0f} that may be dumped.",
            place(connection),
            f"Raise the app's dump.max_mb, or {off}",
        )
    if size > arguments.dump_free_bytes:
        raise Problem(
            "space",
            f"A dump of the database may need {size / 2**20:.0f} MiB; {arguments.dump_free_bytes / 2**20:.0f} are free.",
            place(connection),
            f"Or {off}",
        )
    began = time.monotonic()
    wait = f"--lock-wait-timeout={int(arguments.lock_seconds * 1000)}"
    command, environment = connected(connection, "pg_dump", "dump", "--format=custom", wait)
    code = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, check=False).returncode
    if code != 0:
        raise Problem(
            "space",
            f"pg_dump ended with code {code}, so nothing was migrated.",
            place(connection),
            f"Or mend what it says; or {off}",
        )
    tell("dumped")
    say(f"The database was dumped in {time.monotonic() - began:.1f} s.")


def migrate(connection: Any, output: int, arguments: argparse.Namespace, outcome: Outcome) -> None:
    """Show the plan, dump, and migrate, all under the lock; raises Problem."""
    from django.core.management import call_command

    with locked(connection, arguments.lock_seconds):
        plan = planned(connection)
        show(plan, connection, outcome)
        if plan:
            if arguments.dump:
                dump(connection, output, arguments)
            try:
                call_command("migrate", interactive=False, skip_checks=False, stdout=sys.stderr, no_color=True)
            except Exception as error:
                note(connection, outcome)
                raise failure(connection, error, arguments, outcome) from error
        note(connection, outcome)


def note(connection: Any, outcome: Outcome) -> None:
    """Note what of the plan is applied now; nothing when the database does not say."""
    from django.db import Error

    connection.close()
    try:
        outcome.known = applied(connection)
    except Error as error:
        say(f"Which migrations are applied could not be read: {error}")
        return
    has = {f"{label}.{name}" for label, names in outcome.known.items() for name in names}
    outcome.applied = [name for name in outcome.plan if name in has]


def failure(connection: Any, error: Exception, arguments: argparse.Namespace, outcome: Outcome) -> Problem:
    """Return what to tell of a migration that failed."""
    first = next((name for name in outcome.plan if name not in outcome.applied), "what follows the migrations")
    if is_lock_timeout(error):
        what = f"{first} did not get a lock on a table within {arguments.lock_seconds:g} s and gave up."
        remedy = "End what keeps the table, or deploy again when it has ended; or raise migration_lock_seconds."
        show_transactions(connection)
    else:
        what = f"{first} failed: {type(error).__name__}: {error}".rstrip()
        remedy = "Correct the migration and deploy again."
        traceback.print_exc()
    return Problem("migrate", what, place(connection), remedy)


def is_lock_timeout(error: BaseException | None) -> bool:
    """Tell whether an error comes from a statement that waited too long for a lock (PostgreSQL's lock_not_available)."""
    while error is not None:
        if "55P03" in (getattr(error, "sqlstate", None), getattr(error, "pgcode", None)):
            return True
        error = error.__cause__
    return False


def show_transactions(connection: Any) -> None:
    """Write the transactions that have been open for longest: one of them keeps the table."""
    rows = query(
        connection,
        "SELECT pid, usename, application_name, coalesce(state, '?'), date_trunc('second', now() - xact_start), left(query, 80)"
        " FROM pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL AND pid <> pg_backend_pid()"
        " ORDER BY xact_start LIMIT 5",
    )
    say("\nOpen for longest, as far as this user may see:" if rows else "\nThis user may see no open transaction.")
    for process, user, application, state, age, text in rows:
        say(f"  {age}: process {process} of {user} '{application}', {state}: {' '.join(str(text).split())}")


def restore(connection: Any, arguments: argparse.Namespace, outcome: Outcome) -> None:
    """Put the database back as the dump on standard input has it, in one transaction; raises Problem."""
    if connection.vendor != "postgresql":
        raise Problem(
            "restore", f"No dump of {connection.vendor} can be restored.", place(connection), "Use its own tools."
        )
    reader = program("pg_restore", "restore")
    listed = subprocess.run([reader, "--list"], stdout=subprocess.PIPE, text=True, check=False)
    if listed.returncode != 0:
        raise Problem("restore", "pg_restore can't read the dump.", "What it said is below.", "Take another dump.")
    os.lseek(0, 0, os.SEEK_SET)
    with tempfile.NamedTemporaryFile("w", suffix=".list") as contents, locked(connection, arguments.lock_seconds):
        contents.writelines(line for line in listed.stdout.splitlines(True) if not KEPT_ENTRIES.match(line))
        contents.flush()
        options = ["--no-psqlrc", "--quiet", "--single-transaction", "--set=ON_ERROR_STOP=1", "--output=/dev/null"]
        clear = f"SET lock_timeout = {int(arguments.lock_seconds * 1000)}; SET client_min_messages = warning; {CLEAR}"
        command, environment = connected(connection, "psql", "restore", *options, f"--command={clear}", "--file=-")
        # pg_restore's own --clean would leave what came after the dump, and fail where that refers to what it drops.
        words = [reader, "--no-owner", "--exit-on-error", f"--use-list={contents.name}", "--file=-"]
        if not piped(words, command, environment):
            raise Problem(
                "restore",
                "The dump was not restored; the database is as it was.",
                place(connection),
                "Mend what the lines below show, then try again.",
            )
        note(connection, outcome)


def piped(writer: list[str], reader: list[str], environment: dict[str, str]) -> bool:
    """Let one program read what another writes; one whose writer fails is killed, before it takes the end for the whole."""
    with (
        subprocess.Popen(writer, stdout=subprocess.PIPE) as script,
        subprocess.Popen(reader, env=environment, stdin=subprocess.PIPE, bufsize=0) as session,
    ):
        if script.stdout and session.stdin:
            try:
                shutil.copyfileobj(script.stdout, session.stdin)
            except BrokenPipeError:
                script.kill()
        if script.wait() != 0:
            session.kill()
    return script.returncode == 0 and session.returncode == 0


def set_up() -> Any:
    """Set up Django and return the connection of its default database, proven; raises Problem."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        import django

        django.setup()
    except Exception as error:
        traceback.print_exc()
        settings = os.environ.get("DJANGO_SETTINGS_MODULE")
        raise Problem(
            "settings",
            f"The settings '{settings}' do not set up Django: {type(error).__name__}: {error}".rstrip(),
            f"In {Path.cwd()}.",
            "Correct settings_module or the environment, and deploy again.",
        ) from error
    from django.db import connection

    return connection


def prove(connection: Any) -> None:
    """Connect; raises Problem when the database does not answer."""
    from django.db import Error

    try:
        connection.ensure_connection()
    except Error as error:
        raise Problem(
            "database",
            f"The database does not answer: {' '.join(str(error).split())}",
            place(connection),
            "Start it, or correct the app's database settings, then deploy again.",
        ) from error


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=["plan", "migrate", "restore"])
    parser.add_argument("--dump", action="store_true")
    parser.add_argument("--dump-max-bytes", type=int, default=sys.maxsize)
    parser.add_argument("--dump-free-bytes", type=int, default=sys.maxsize)
    parser.add_argument("--lock-seconds", type=float, default=10)
    arguments = parser.parse_args()
    # Nothing but the dump goes there; what migrations print goes to standard error.
    output = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr

    outcome = Outcome()
    try:
        connection = set_up()
        limit_waits(arguments.lock_seconds)
        if arguments.mode != "restore" and connection.settings_dict["ENGINE"] == "django.db.backends.dummy":
            say("The app's settings name no database.")
        else:
            prove(connection)
            if arguments.mode == "plan":
                show(planned(connection), connection, outcome)
            elif arguments.mode == "migrate":
                migrate(connection, output, arguments, outcome)
            else:
                restore(connection, arguments, outcome)
    except Problem as problem:
        outcome.error = problem.public
    except Exception as error:
        traceback.print_exc()
        what = f"{type(error).__name__}: {error}".rstrip()
        outcome.error = Problem("migrate", what, "", "Correct what the lines below show, then deploy again.").public
    tell("end", **asdict(outcome))
    sys.exit(1 if outcome.error else 0)


if __name__ == "__main__":
    main()
