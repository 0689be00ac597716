"""Changes that are cut off, refused or taken back, on a host that must go on serving (Molecule scenario faults)."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from changing import (
    APP,
    FAULTS,
    HOST,
    KILLS_FILE,
    SITE,
    SOURCE,
    WORKERS,
    another_lock,
    answers,
    change_code,
    children,
    deploy,
    deploy_killed,
    deploy_well,
    earlier_good,
    fails,
    generations,
    gunicorn,
    refused,
    runs,
    serving,
    status,
    talks,
)
from hosts import Played, full, play, wait_for

earlier = pytest.fixture(earlier_good)

# ---- migrations -----------------------------------------------------------------------------------------------------


def count_of(rows: str) -> int:
    """Return how many rows of the app's database there are of a table, or of a table and a condition."""
    return int(HOST.run("psql", "--dbname=chat", "-tAc", f"select count(*) from {rows}", user="postgres"))


def chat_messages() -> int:
    """Return how many messages the database has."""
    return count_of("chat_message")


def times_migrated(name: str) -> int:
    """Return how often the database has a migration of the app that the tests add."""
    return count_of(f"django_migrations where app = 'faults' and name = '{name}'")


def write_migration(name: str, operation: str) -> Path:
    """Write a migration of the app that the tests add; returns its file."""
    path = SOURCE / f"faults/migrations/{name}.py"
    before = sorted(one.stem for one in path.parent.glob("0*.py"))[-1:]
    path.write_text(
        "from django.db import migrations\n\n\n"
        "def fail(apps, editor):\n    raise RuntimeError('this migration fails')\n\n\n"
        f"class Migration(migrations.Migration):\n    dependencies = {[('faults', one) for one in before]}\n"
        f"    operations = [migrations.RunPython({operation}, migrations.RunPython.noop)]\n"
    )
    return path


def test_a_failing_migration_leaves_its_dump_and_the_way_back() -> None:
    before, known = serving(), set(generations())
    path = write_migration("0001_failing", "fail")
    played = deploy()
    path.unlink()
    fails(played, "RuntimeError: this migration fails")
    assert serving() == before
    (candidate,) = set(generations()) - known
    assert generations()[candidate]["state"] == "failed"
    assert "failed on" in refused("quintet", "activate", APP, candidate)
    command = re.search(rf"quintet restore {APP} (/var/lib/quintet/{APP}/dumps/{candidate}-\w+\.dump)", played.text)
    assert command, played.text[-3000:]
    count = chat_messages()
    assert talks()
    assert chat_messages() == count + 1
    HOST.run(*command.group().split())
    # Those that serving() has asked for were before the dump, that of talks() after it.
    assert chat_messages() <= count
    assert serving() == before


def test_a_disk_that_is_full_during_the_dump_leaves_the_database() -> None:
    before, dumps = serving(), f"/var/lib/quintet/{APP}/dumps"
    path = write_migration("0001_dumped", "migrations.RunPython.noop")
    # More than the dump needs, which is asked for first, and nothing as soon as that was asked.
    fill = f"until [ -e {dumps}/.*.part ]; do sleep 0.05; done; cat /dev/zero > {dumps}/.more 2> /dev/null || true"
    HOST.run("mkdir", "--parents", dumps)
    with full(HOST, dumps, 32 * 1024**2), ThreadPoolExecutor() as threads:
        filled = threads.submit(HOST.run, "timeout", "60", "sh", "-c", fill)
        played = deploy()
        filled.result()
        assert HOST.fails("sh", "-c", f"ls {dumps}/.*.part")
        assert serving() == before
    path.unlink()
    fails(
        played, "pg_dump ended with code 1, so nothing was migrated", "No space left on device", f"quintet prune {APP}"
    )
    assert status()["lock"] is None
    assert times_migrated("0001_dumped") == 0


@contextmanager
def transaction(statement: str) -> Iterator[None]:
    """Keep a transaction of the app's database open in which a statement was executed."""
    command = ["docker", "exec", "--interactive", HOST.name, "runuser", "-u", APP, "--", "psql", "--quiet", APP]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as session:
        assert session.stdin
        assert session.stdout
        session.stdin.write(f"BEGIN; {statement};\n\\echo begun\n")
        session.stdin.flush()
        assert any(line == "begun\n" for line in session.stdout), "psql has ended"
        yield
        session.stdin.close()


def test_a_migration_gives_up_rather_than_keep_others_waiting() -> None:
    before = serving()
    halves = [
        int.from_bytes(hashlib.sha256(word).digest()[:4], "big", signed=True) for word in (b"quintet", b"migrate")
    ]
    with transaction("SELECT pg_advisory_lock({}, {})".format(*halves)):
        told = refused("quintet", "migrate", APP, before)
    assert "Another session migrates the database and did not end within 2 s" in told
    path = write_migration("0001_waiting", "lambda apps, editor: editor.execute('LOCK TABLE chat_room')")
    with transaction("SELECT * FROM chat_room LIMIT 0"):
        played = deploy()
        assert serving() == before
    path.unlink()
    fails(played, "faults.0001_waiting did not get a lock on a table within 2 s and gave up", "Open for longest")


# ---- one at a time --------------------------------------------------------------------------------------------------


def is_being_changed() -> bool:
    """Say whether a host command is changing the app at this moment, or a module of Ansible's runs, which may be about to."""
    listed = HOST.run("sh", "-c", "for file in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $file; echo; done 2> /dev/null")
    modules = [line for line in listed.splitlines() if re.fullmatch(r"/usr/bin/python3[.0-9]*", line.strip())]
    return bool(modules) or HOST.fails("flock", "--nonblock", f"/var/lib/quintet/{APP}/lock", "true")


def configuration() -> str:
    """Return a digest of all that the host command goes by."""
    return HOST.run("sh", "-c", f"cd /etc/quintet/{APP} && find . -type f -exec sha256sum {{}} + | sort")


def test_a_second_deploy_and_an_activate_are_refused_while_one_is_under_way(earlier: str) -> None:
    before = serving()
    HOST.run("rm", "--force", f"/srv/{APP}/shared/media/go")
    with ThreadPoolExecutor() as threads:
        first = threads.submit(deploy, fault="wait")
        try:
            wait_for("the first deploy", lambda: status()["lock"] is not None)
            lock = status()["lock"]
            holder = f"is being changed by {lock['holder']} since {lock['since']}"
            known = configuration()
            fails(deploy(mark="second"), holder)
            assert configuration() == known, "the first one's probes, settings and environment"
            assert holder in refused("quintet", "activate", APP, earlier)
            assert holder in refused("quintet", "rollback", APP)
            assert serving() == before
        finally:
            HOST.run("touch", f"/srv/{APP}/shared/media/go")
        assert first.result().code == 0, first.result().output[-4000:]
    assert status()["lock"] is None
    assert serving() not in (before, earlier)


def test_a_lock_from_elsewhere_is_kept_until_somebody_breaks_it() -> None:
    elsewhere = {"host": "elsewhere/1", "boot": "2", "pid_namespace": "pid:[3]", "pid": 4, "started": 5}
    begin = ["quintet", "begin", APP, HOST.current(APP), "--token", "T" * 24, "--by", "ann@elsewhere"]
    begin += ["--controller", json.dumps(elsewhere)]
    HOST.run(*begin)
    told = refused("quintet", "rollback", APP)
    assert "is being changed by ann@elsewhere since" in told
    assert f"quintet unlock {APP}, or run the playbook with -e django_app_break_lock=true" in told
    HOST.run("quintet", "unlock", APP)
    assert status()["lock"] is None
    HOST.run(*begin)
    change_code()
    deploy_well(django_app_break_lock=True)
    assert status()["lock"] is None


def test_a_reboot_in_mid_deploy_goes_back_and_leaves_no_lock() -> None:
    before = serving()
    change_code()
    deploy_killed("confirm | Let the switch stay")
    candidate = serving()
    assert candidate != before
    assert status()["unconfirmed"]["before"] == before
    assert status()["lock"]
    subprocess.run(["docker", "restart", HOST.name], check=True, capture_output=True)
    wait_for("the site after its reboot", lambda: answers() == talks() == before)
    assert serving() == before
    assert (status()["lock"], status()["unconfirmed"]) == (None, None)
    assert not runs(candidate)
    # What it had built is as good as before.
    assert deploy_well() == candidate


def test_a_loss_of_power_in_mid_build_costs_a_build() -> None:
    before = serving()
    change_code()
    deploy_killed(
        "generation | Check that the app imports, collect its static files, and check Gunicorn's configuration", 0.5
    )
    subprocess.run(["docker", "kill", HOST.name], check=True, capture_output=True)
    subprocess.run(["docker", "start", HOST.name], check=True, capture_output=True)
    wait_for("the site after its loss of power", lambda: answers() == talks() == before)
    assert (status()["lock"], status()["unconfirmed"]) == (None, None)
    assert "building" in {one["state"] for one in generations().values()}
    assert deploy_well() != before


# ---- the way back ---------------------------------------------------------------------------------------------------


def who() -> dict[str, Any]:
    """Return what the code and the environment say of themselves."""
    value: dict[str, Any] = SITE.get("/who?number=1").json
    return value


def environment() -> str:
    """Return the virtual environment that the servers of the current generation run in."""
    (venv,) = set(HOST.run("sh", "-c", f"readlink --canonicalize /proc/{gunicorn()}/cwd/../venv").split())
    return venv


def test_a_rollback_brings_code_dependencies_environment_and_settings_back() -> None:
    code = SOURCE / "config/load.py"
    first, dependencies = serving(), environment()
    assert (who()["version"], who()["mark"], len(children(gunicorn()))) == ("1", "first", WORKERS)
    original = code.read_text()
    code.write_text(original.replace('VERSION = "1"', 'VERSION = "2"'))
    with another_lock():
        second = deploy_well(mark="second", workers=1)
    code.write_text(original)
    assert (who()["version"], who()["mark"], len(children(gunicorn()))) == ("2", "second", 1)
    assert environment() != dependencies

    began = time.monotonic()
    HOST.run("quintet", "rollback", APP)
    print(f"\nquintet rollback took {time.monotonic() - began:.1f} s")
    assert serving() == first
    assert (who()["version"], who()["mark"], len(children(gunicorn()))) == ("1", "first", WORKERS)
    assert environment() == dependencies
    assert "is rolled back already" in refused("quintet", "rollback", APP)

    # By the playbook, to one that is named.
    began = time.monotonic()
    played = rollback(generation=second.partition("-")[0])
    print(f"rollback.yml took {time.monotonic() - began:.1f} s")
    assert played.code == 0, played.output[-4000:]
    assert serving() == second
    assert (who()["version"], who()["mark"]) == ("2", "second")
    assert status()["hold"]["generation"] == second
    # A deploy of all apps respects it.
    played = play("playbooks/deploy.yml")
    assert (played.code, played.changed) == (0, 0), played.changed_tasks
    assert f"HOLD: app '{APP}'" in played.text
    assert serving() == second
    # A deploy by name ends the hold.
    assert deploy_well() != second
    assert (who()["version"], who()["mark"], status()["hold"]) == ("1", "first", None)


def rollback(**variables: object) -> Played:
    """Roll the app back by the playbook."""
    return play("playbooks/rollback.yml", "--extra-vars", json.dumps({"app": APP, **variables}))


def test_a_rollback_across_migrations_needs_a_word() -> None:
    before = serving()
    write_migration("0001_nothing", "migrations.RunPython.noop")
    after = deploy_well()
    refusal = "does not know migrations that the database has: faults.0001_nothing"
    assert refusal in refused("quintet", "rollback", APP)
    fails(rollback(), refusal, "-e accept_migrations=true")
    assert serving() == after
    HOST.run("quintet", "rollback", APP, "--accept-migrations")
    assert serving() == before
    assert rollback(generation=after).code == 0
    assert serving() == after


# ---- workers and timers ---------------------------------------------------------------------------------------------


TICKS = f"/srv/{APP}/shared/media/ticks"
TICK = {"name": "tick", "command": 'sh -c "echo $QUINTET_GENERATION >> $MEDIA_ROOT/ticks"', "calendar": "*:*:*"}


def moments(generation: str) -> dict[str, float]:
    """Return when systemd last said of a generation's worker that it was started and that it was stopped, in seconds."""
    command = ["journalctl", "--quiet", "--output=json", f"UNIT=worker-{APP}-idle-1@{generation}.service"]
    entries = [json.loads(line) for line in HOST.run(*command).splitlines()]
    jobs = {"start": "started", "stop": "stopped"}
    return {
        jobs[entry["JOB_TYPE"]]: int(entry["__MONOTONIC_TIMESTAMP"]) / 1e6
        for entry in entries
        if entry.get("JOB_TYPE") in jobs and entry.get("JOB_RESULT") == "done"
    }


def ticks() -> list[str]:
    """Return the generations whose timer has run its job, in the order of the runs."""
    return HOST.run("sh", "-c", f"cat {TICKS} 2> /dev/null || true").split()


def test_workers_and_timers_run_in_the_current_generation_alone() -> None:
    change_code()
    first = deploy_well(timers=[TICK])
    wait_for("the timer of the first generation", lambda: first in ticks())
    dependencies = environment()
    change_code()
    second = deploy_well(timers=[TICK])
    wait_for("the timer of the second generation", lambda: second in ticks())
    assert environment() == dependencies, "what has not changed is not installed again"
    assert moments(first)["stopped"] <= moments(second)["started"], "never two at the same time"
    (worker,) = HOST.processes(f"worker-{APP}-*")
    assert f"QUINTET_GENERATION={second}" in HOST.run("sh", "-c", f"tr '\\0' '\\n' < /proc/{worker}/environ").split()
    order = [one for one in ticks() if one in (first, second)]
    assert first not in order[order.index(second) :], "no timer of a generation that does not serve"
    # They go back with it.
    HOST.run("quintet", "rollback", APP)
    assert serving() == first
    assert moments(second)["stopped"] <= moments(first)["started"]
    ran = len(ticks())
    wait_for("the timer of the first generation again", lambda: len(ticks()) > ran + 1)
    assert set(ticks()[ran + 1 :]) == {first}


# ---- hooks ----------------------------------------------------------------------------------------------------------


def test_hooks_run_at_their_moments() -> None:
    told = {"on_failure": " $QUINTET_STEP $QUINTET_FAILED_GENERATION", "before_migrate": "", "after_switch": ""}
    hooks = {
        moment: [{"command": f'echo "{moment} $QUINTET_GENERATION{more}" >> "$MEDIA_ROOT/hooks"'}]
        for moment, more in told.items()
    }
    hooks |= {moment: [{"command": f"echo {moment} $(id -un) >> hooks"}] for moment in ("build", "after_build")}
    write_migration("0002_for_hooks", "migrations.RunPython.noop")
    first = deploy_well(more_hooks=hooks)
    known = set(generations())
    fails(deploy(more_hooks=hooks, fault="boot"), *FAULTS["boot"])
    (failed,) = set(generations()) - known
    assert HOST.run("cat", f"/srv/{APP}/shared/media/hooks").splitlines() == [
        f"before_migrate {first}",
        f"after_switch {first}",
        f"on_failure {first} start {failed}",
    ]
    # The time limit is systemd's; what the hook has started ends with it.
    sleeps = {"before_switch": [{"name": "endless", "command": "sleep 600", "timeout_seconds": 1}]}
    late = "did not end within 1 s and was stopped"
    fails(deploy(more_hooks=sleeps), "the hook 'endless' (before_switch) of generation", late, "Step: before_switch")
    assert serving() == first
    assert HOST.fails("systemctl", "is-active", f"quintet-hook-{APP}.service")
    built = HOST.run("cat", f"/srv/{APP}/generations/{first}/src/hooks")
    assert built.splitlines() == [f"build {APP}-build", f"after_build {APP}-build"]


# ---- a controller that dies -----------------------------------------------------------------------------------------


# What happens on the controller alone: a death there is one before the next remote task.
LOCAL = {"set_fact", "assert", "debug", "fail", "include_role", "include_tasks", "validate_argument_spec"}
CONFIRM_SECONDS = 5
LOCKS, CONFIRMS = "begin | Take the app's lock", "confirm | Let the switch stay"
INSTALLS = "environment | Install the locked dependencies"
# Tasks that are killed after so many seconds rather than at their start. The host brings to its end what it was told to begin: a hook and
# the dump and the migration after it, and a switch, which it takes back when nobody confirms it.
WITHIN: dict[str, tuple[float, ...]] = {
    INSTALLS: (0.5,),
    "generation | Run the app's build commands": (0.5,),
    "migrate | Migrate the database with the next generation's code": (0.5,),
    "activate_host | Start, probe and switch to the generation": (0, 0.7),
    CONFIRMS: (0, 0.3),
}


@dataclass(frozen=True)
class Task:
    """A task of a deploy, and whether it left the host otherwise than it was."""

    name: str
    changes: bool


def remote_tasks() -> list[Task]:
    """Return the tasks of the last recorded run that did anything on the host, be it only to look."""
    lines = [line.split("\t") for line in KILLS_FILE.read_text().splitlines()]
    outcomes = {number: rest[0] for number, *rest in lines if rest[0] != "start"}
    tasks = [
        (outcomes[number], rest[2].rpartition(" : ")[2])
        for number, *rest in lines
        if rest[0] == "start" and rest[1].rpartition(".")[2] not in LOCAL and number in outcomes
    ]
    # The lock is gone when a run ends, so it does not count as changed.
    return [Task(name, outcome == "changed" or name == LOCKS) for outcome, name in tasks if outcome != "skipped"]


def kills_at(tasks: list[Task]) -> Iterator[tuple[str, float]]:
    """Yield at which task to kill a run and how many seconds after its start: wherever the host is otherwise than at the kill before."""
    differs = True
    for task in tasks:
        for after in WITHIN.get(task.name, (0,) if differs else ()):
            yield task.name, after
        differs = task.changes


def is_settled() -> bool:
    """Say whether nothing is going on: no host command, no switch that waits, no drain."""
    return not is_being_changed() and status()["unconfirmed"] is None


def converges(**variables: object) -> None:
    """Demand that a run comes to its end, that the next changes nothing, and that what runs is what is on disk."""
    current = deploy_well(**variables)
    again = deploy(**variables)
    assert (again.code, again.changed) == (0, 0), again.changed_tasks
    assert serving() == current
    found = generations()
    assert set(found[current]["units"].values()) == {"active"}
    others = set(found) - {current}
    wait_for("the drains", lambda: not any(runs(one) for one in others))
    listed = HOST.run("systemctl", "list-units", "--plain", "--no-legend", "--state=active", f"*-{APP}*@*")
    assert {line.split()[0].partition("@")[2].partition(".")[0] for line in listed.splitlines()} == {current}
    assert status()["lock"] is None


def change_everything(name: str) -> dict[str, Any]:
    """Change code, environment and database, with commands of the app's own; returns the variables of the deploy."""
    change_code()
    write_migration(name, "migrations.RunPython.noop")
    hooks = {"build": [{"command": "sleep 1"}], "before_migrate": [{"command": "sleep 1"}]}
    return {"mark": name, "more_hooks": hooks, "django_app_confirm_seconds": CONFIRM_SECONDS}


def killed_and_settled(name: str, after: float, variables: dict[str, Any]) -> bool:
    """Kill a deploy, while which the site must answer, and wait for the host; returns whether a switch waited to be confirmed."""
    began, moment = time.monotonic(), f"{name}, after {after} s"
    deploy_killed(name, after, **variables)
    killed = time.monotonic()
    assert answers(), moment
    assert talks(), moment
    waits = status()["unconfirmed"] is not None
    wait_for(f"the host after the kill at {moment}", is_settled, 30 + CONFIRM_SECONDS)
    print(f"{killed - began:5.1f} s until killed, {time.monotonic() - killed:5.1f} s until settled: {moment}")
    return waits


@pytest.mark.thorough
def test_a_change_killed_at_each_of_its_tasks_leaves_a_site_that_serves_and_comes_to_its_end() -> None:
    print()
    with another_lock():
        deploy_killed(**change_everything("0003_recorded"))
        tasks = remote_tasks()
        kills = list(kills_at(tasks))
        assert len({task.name for task in tasks}) == len(tasks)
        assert len(kills) >= 12
        assert set(WITHIN) <= {name for name, _ in kills}
        until_installed = [name for name, _ in kills].index(INSTALLS) + 1
        last = kills.pop()
        assert last[0] == CONFIRMS
        # One change, which goes on from what the killed run before has left of it.
        before, undone, variables = serving(), 0, change_everything("0004_killed")
        # Other dependencies only until then: to install them again and again takes most of the time.
        with another_lock():
            for name, after in kills[:until_installed]:
                killed_and_settled(name, after, variables)
                assert serving() == before, (name, after)
        for name, after in kills[until_installed:]:
            undone += killed_and_settled(name, after, variables)
            assert serving() == before, (name, after)
        assert undone > 0
        # Only a confirm that was under way may let the change stay.
        killed_and_settled(*last, variables)
        assert generations()[serving()]["state"] == "good"
        converges(**variables)
    assert times_migrated("0004_killed") == 1
