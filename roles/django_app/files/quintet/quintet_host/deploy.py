"""The steps of a deploy that are not the switch: its beginning, the migrations, its failure, its end."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from quintet_host import hooks, migrate, units
from quintet_host.errors import QuintetError, as_quintet_error
from quintet_host.generation import Generation, find, load
from quintet_host.host import Host
from quintet_host.lock import end_lease, locked, refuse_beside_another, take_lease
from quintet_host.seal import build_seconds
from quintet_host.switch import on_failure


def begin(
    host: Host, app: str, identifier: str, controller: dict[str, Any] | None, *, build: bool, take_over: bool
) -> str:
    """Take the deploy's lock; with `build`, clear what an unfinished build left and mark the generation as being built.

    Returns what to tell. Raises QuintetError when another deploy holds the lock, unless told to take over.
    """
    # A new app has no directory yet.
    host.layout.state(app).mkdir(mode=0o700, parents=True, exist_ok=True)
    command = f"deploy {app} {identifier}"
    if not take_over:
        # Before the wait for one of its commands, which could only name that command.
        refuse_beside_another(host, app)
    with locked(host, app, command, ignore_lease=True):
        if build:
            _refuse_serving(host, app, identifier, "building")
        taken = take_lease(host, app, command, controller, take_over=take_over)
        try:
            if build:
                _clear(host, app, identifier)
                host.store(app).mark(identifier, "building", "", host.clock.now())
        except BaseException:
            # Who is told that this failed does not come back to end it.
            end_lease(host, app, whose=host.token)
            raise
    return f"{app}: the lock is taken" + (f" over from {taken}." if taken else ".")


def fail(host: Host, app: str, identifier: str, reason: str) -> bool:
    """Record that a generation could not be built, run the on_failure hooks and end the lock; returns whether that is news."""
    host.layout.state(app).mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(host, app, f"mark {app} {identifier} failed"):
        _refuse_serving(host, app, identifier, "failed")
        began = host.store(app).generation(identifier)
        changed = host.store(app).mark(identifier, "failed", reason, host.clock.now())
        if changed:
            host.log(app, "build", "failed", generation=identifier, **build_seconds(host, began), reason=reason)
        on_failure(host, app, "build", reason, identifier)
        if host.token:
            end_lease(host, app, whose=host.token)
    return changed


def plan_migrations(host: Host, app: str, identifier: str) -> tuple[str, ...]:
    """Return what `migrate_database` would apply; raises QuintetError, with the generation failed."""
    with _migrating(host, app, identifier, "plan the migrations of") as generation:
        return migrate.plan(host, app, generation)


def migrate_database(host: Host, app: str, identifier: str) -> migrate.Migrated:
    """Run the migrations of a generation, and the hooks before and after them; raises QuintetError, with the generation failed."""
    began = host.clock.monotonic()
    with _migrating(host, app, identifier, "migrate") as generation:
        # Those after them run in each change, those before only with something to migrate.
        if not generation.hooks.get("after_migrate") or migrate.plan(host, app, generation):
            hooks.run(host, generation, "before_migrate")
        done = migrate.migrate(host, app, generation)
        if done.changed:
            seconds = host.clock.seconds_since(began)
            about = {"applied": list(done.applied), "dump": str(done.dump or "")}
            host.log(app, "migrate", "ok", generation=identifier, seconds=seconds, **about)
        hooks.run(host, generation, "after_migrate")
    return done


@contextmanager
def _migrating(host: Host, app: str, identifier: str, command: str) -> Iterator[Generation]:
    """Hold the lock for a step of the migration; what fails in it fails the generation."""
    with locked(host, app, f"{command} {app} {identifier}"):
        generation = load(host.layout, app, identifier)
        began = host.clock.monotonic()
        try:
            yield generation
        except (OSError, QuintetError) as unforeseen:
            error = as_quintet_error(app, unforeseen)
            # One that served before is not spoilt by a database that is away.
            if host.store(app).generation(identifier).state != "good":
                # On a full disk it stays built: the next run migrates again.
                with suppress(OSError):
                    host.store(app).mark(identifier, "failed", error.what, host.clock.now())
            seconds = host.clock.seconds_since(began)
            host.log(app, "migrate", "failed", generation=identifier, seconds=seconds, reason=error.what)
            on_failure(host, app, "migrate", error.what, identifier)
            if error is unforeseen:
                raise
            raise error from unforeseen


def unlock(host: Host, app: str) -> str | None:
    """End the deploy's lock: the caller's own by its token, else whosever it is; returns whose it was, if there was one."""
    with locked(host, app, f"unlock {app}", ignore_lease=True):
        ended = end_lease(host, app, whose=host.token or None)
        if ended and ended.token != host.token:
            host.log(app, "lock broken", "ok", holder=ended.holder, since=ended.since, command=ended.command)
    return str(ended) if ended else None


def _refuse_serving(host: Host, app: str, identifier: str, state: str) -> None:
    if host.layout.current_id(app) == identifier:
        raise QuintetError(
            f"{app}: generation {identifier} serves; it can't become {state}.",
            f"{host.layout.current(app)} names it.",
            f"Switch to another one first: quintet activate {app} ID",
        )


def _clear(host: Host, app: str, identifier: str) -> None:
    """Remove what an unfinished or failed build left: it is not trusted, and must not be served by old processes."""
    units.stop_builds(host, app)
    path = host.layout.generation(app, identifier)
    left = find(host.layout, app, identifier)
    if left:
        units.stop_drain(host, left)
        units.stop(host, left)
    if path.exists():
        shutil.rmtree(path)
