"""Migrations: the host's half with a fake process, and migrate_app.py in a process of its own with SQLite."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
from host_support import A, B, Machine, serving
from quintet_host import migrate
from quintet_host.errors import QuintetError
from quintet_host.generation import Generation, load
from quintet_host.system import Captured

SCRIPT = Path(__file__).parents[2] / "roles/django_app/files/generation/migrate_app.py"
KNOWN = {"chat": ["0001_initial", "0002_topic"]}
DUMPED = '{"quintet": "dumped"}'
PLAN = ["chat.0002_topic", "chat.0003_size"]


def end(**found: Any) -> str:
    nothing: dict[str, Any] = {"plan": [], "irreversible": [], "applied": [], "known": KNOWN, "error": None}
    return json.dumps({"quintet": "end", **nothing, **found})


def wrong(step: str) -> dict[str, str]:
    return {"step": step, "what": "It broke.", "where": "Database shop.", "remedy": "Mend it."}


@pytest.fixture
def here(tmp_path: Path) -> Machine:
    """A host where A serves and B is built, both able to migrate."""
    found = serving(tmp_path)
    for identifier in (A, B):
        (found.layout.generation("shop", identifier) / "units/migrate_app.py").touch()
    return found


def settings(here: Machine, **values: Any) -> None:
    here.layout.settings("shop").write_text(json.dumps(values))


def generation(here: Machine, **more: Any) -> Generation:
    path = here.layout.generation("shop", B) / "generation.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
    return load(here.layout, "shop", B)


def dumps(here: Machine) -> list[str]:
    return sorted(path.name for path in (here.layout.state("shop") / "dumps").iterdir())


def put_dump(here: Machine, name: str, content: bytes = b"PGDMP...") -> Path:
    path = here.layout.state("shop") / "dumps" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o600)
    return path


def test_the_dump_is_kept_and_what_the_database_has_is_recorded(here: Machine) -> None:
    lines = ("To be applied, 1.", "", DUMPED, "Applying", "", end(plan=PLAN[:1], applied=PLAN[:1]))
    here.system.answers = [(b"PGDMP content", Captured(0, lines, "success"))]
    reported: list[str] = []
    done = migrate.migrate(replace(here.host, report=reported.append), "shop", generation(here))
    path = here.layout.state("shop") / f"dumps/{B}-20261123T200000Z.dump"
    assert (done.changed, done.applied, done.dump) == (True, ("chat.0002_topic",), path)
    assert path.read_bytes() == b"PGDMP content"
    assert oct(path.stat().st_mode & 0o777) == "0o600"
    assert dumps(here) == [path.name]
    assert json.loads((here.layout.state("shop") / "migrations.json").read_text()) == {"chat": ["0002_topic"]}
    assert reported == ["To be applied, 1.", "Applying"]
    [(unit, options, command)] = here.system.captured
    assert unit == "quintet-migrate-shop.service"
    assert not any(option.startswith("--property=RuntimeMaxSec") for option in options), "a migration has its time"
    assert command[2:6] == ["migrate", "--lock-seconds=10", "--dump", "--dump-max-bytes=10737418240"]


def test_settings_reach_the_process(here: Machine) -> None:
    settings(here, migration_lock_seconds=2.5, dump={"max_bytes": 5})
    here.system.answers = [(b"", Captured(0, (end(),), "success")), Captured(0, (end(),), "success")]
    migrate.migrate(here.host, "shop", generation(here))
    settings(here, migration_lock_seconds=2.5, dump={"enabled": False})
    migrate.migrate(here.host, "shop", generation(here))
    [first, second] = [command[2:] for _, _, command in here.system.captured]
    assert first[:4] == ["migrate", "--lock-seconds=2.5", "--dump", "--dump-max-bytes=5"]
    assert second == ["migrate", "--lock-seconds=2.5"]


@pytest.fixture
def owner(here: Machine, tmp_path: Path) -> dict[str, str]:
    """Give the app a database on another host, and the certificate that its owner is known by."""
    found = {"url": "postgresql://shop%3Aowner@10.0.0.5:5432/shop?sslmode=verify-full", "group": "shop-build"}
    for name in ("certificate", "key"):
        (tmp_path / name).touch()
        found[name] = str(tmp_path / name)
    settings(here, database_owner=found)
    return found


def test_a_database_on_another_host_is_migrated_by_its_owner(here: Machine, owner: dict[str, str]) -> None:
    here.system.answers = [Captured(0, (end(),), "success")]
    own = [f"LoadCredential={name}:/etc/quintet/shop/{name}" for name in ("SECRET_KEY", "DATABASE_URL")]
    found = generation(here, properties=[*own, "EnvironmentFile=/etc/quintet/shop/environment"])
    migrate.plan(here.host, "shop", found)
    [(unit, options, command)] = here.system.captured
    there = f"/run/credentials/{unit}/database-owner-"
    url = f"{owner['url']}&sslcert={there}certificate&sslkey={there}key"
    # What a unit's own files say of a variable would win over its settings, but not over this.
    assert command[:3] == ["/usr/bin/env", f"DATABASE_URL={url}", f"DATABASE_DIRECT_URL={url}"]
    assert command[3].endswith("/venv/bin/python")
    properties = [option.removeprefix("--property=") for option in options if option.startswith("--property=")]
    # The app's own is not there, so that it looks for the variable.
    assert [line for line in properties if line.startswith("LoadCredential=")] == [
        own[0],
        f"LoadCredential=database-owner-certificate:{owner['certificate']}",
        f"LoadCredential=database-owner-key:{owner['key']}",
    ]
    # Another group first than any process of the running app has.
    assert [line for line in properties if "Group" in line] == [
        "Group=shop-build",
        f"SupplementaryGroups={found.group}",
    ]
    assert f"User={found.user}" in properties


def test_without_its_certificate_nobody_is_the_owner(here: Machine, owner: dict[str, str]) -> None:
    Path(owner["key"]).unlink()
    with pytest.raises(QuintetError, match="can't log in as the owner") as told:
        migrate.plan(here.host, "shop", generation(here))
    assert "site.yml" in told.value.remedy
    assert here.system.captured == []


def test_the_plan_alone(here: Machine) -> None:
    here.system.answers = [Captured(0, (end(plan=PLAN, irreversible=PLAN[1:]),), "success")]
    assert migrate.plan(here.host, "shop", generation(here)) == (PLAN[0], f"{PLAN[1]} (can't be reversed)")
    assert here.system.captured[0][2][2] == "plan"
    here.system.answers = [Captured(1, (end(error=wrong("database")),), "exit-code")]
    with pytest.raises(QuintetError, match="It broke") as caught:
        migrate.plan(here.host, "shop", generation(here))
    assert "Nothing was migrated" in caught.value.where


def test_nothing_to_migrate_leaves_no_dump(here: Machine) -> None:
    here.system.answers = [(b"", Captured(0, ("No migrations to apply.", end()), "success"))]
    done = migrate.migrate(here.host, "shop", generation(here))
    assert (done.changed, done.applied, done.dump) == (False, (), None)
    assert dumps(here) == []


def test_a_failure_says_what_was_applied_and_how_to_go_back(here: Machine) -> None:
    lines = (DUMPED, "Traceback", end(plan=PLAN, applied=PLAN[:1], error=wrong("migrate")))
    here.system.answers = [(b"PGDMP", Captured(1, lines, "exit-code"))]
    with pytest.raises(QuintetError) as caught:
        migrate.migrate(here.host, "shop", generation(here))
    path = here.layout.state("shop") / f"dumps/{B}-20261123T200000Z.dump"
    assert caught.value.what == "shop: It broke."
    assert "Applied of chat.0002_topic, chat.0003_size: chat.0002_topic." in caught.value.where
    assert f"quintet restore shop {path}" in caught.value.remedy
    assert caught.value.details == ("Traceback",)
    assert path.is_file()
    assert json.loads((here.layout.state("shop") / "migrations.json").read_text()) == {"chat": ["0002_topic"]}


def test_a_dump_that_was_not_finished_is_none(here: Machine) -> None:
    put_dump(here, f".{B}-20261123T190000Z.dump.part")
    here.system.answers = [(b"PGDM", Captured(1, (end(plan=PLAN, error=wrong("space")),), "exit-code"))]
    put_dump(here, f"{A}-20261120T000000Z.dump")
    with pytest.raises(QuintetError) as caught:
        migrate.migrate(here.host, "shop", generation(here))
    assert "Nothing was migrated" in caught.value.where
    assert "quintet prune shop" in caught.value.remedy
    assert f"{A}-20261120T000000Z.dump" in caught.value.remedy, "what to free"
    assert "quintet restore" not in caught.value.remedy
    assert dumps(here) == [f"{A}-20261120T000000Z.dump"]


def test_a_process_that_could_not_say_anything(here: Machine) -> None:
    here.system.answers = [(b"", Captured(137, (DUMPED, "Killed"), "oom-kill"))]
    with pytest.raises(QuintetError) as caught:
        migrate.migrate(here.host, "shop", generation(here))
    assert "ended with code 137" in caught.value.what
    assert f"quintet restore shop {here.layout.state('shop')}/dumps/{B}-" in caught.value.remedy
    assert caught.value.details == ("Killed",)
    assert not (here.layout.state("shop") / "migrations.json").exists(), "nobody knows"


def test_success_without_a_word_is_none(here: Machine) -> None:
    here.system.answers = [(b"", Captured(0, (), "success"))]
    with pytest.raises(QuintetError):
        migrate.migrate(here.host, "shop", generation(here))


def test_the_newest_dumps_stay_whichever_generation_made_them(here: Machine) -> None:
    for name in (f"{B}-20261101T000000Z.dump", f"{A}-20261102T000000Z.dump", f"{A}-20261103T000000Z.dump"):
        put_dump(here, name)
    put_dump(here, "notes.txt")
    here.system.answers = [(b"PGDMP", Captured(0, (DUMPED, end(plan=PLAN, applied=PLAN)), "success"))]
    settings(here, dump={"keep": 2})
    migrate.migrate(here.host, "shop", generation(here))
    assert dumps(here) == [f"{A}-20261103T000000Z.dump", f"{B}-20261123T200000Z.dump", "notes.txt"]
    settings(here, dump={"keep": 1})
    assert migrate.prune_dumps(here.host, "shop") == [f"{A}-20261103T000000Z.dump"]


def test_dumps_are_bounded_in_size_but_for_the_newest(here: Machine) -> None:
    for day, size in ((1, 40), (2, 40), (3, 30), (4, 500)):
        put_dump(here, f"{A}-2026110{day}T000000Z.dump").write_bytes(b"P" * size)
    settings(here, dump={"keep": 4, "max_bytes": 575})
    assert migrate.prune_dumps(here.host, "shop") == [f"{A}-20261101T000000Z.dump"]
    settings(here, dump={"keep": 4, "max_bytes": 100})
    assert migrate.prune_dumps(here.host, "shop") == [f"{A}-2026110{day}T000000Z.dump" for day in (2, 3)]
    assert dumps(here) == [f"{A}-20261104T000000Z.dump"]


def test_a_failure_removes_no_older_dump(here: Machine) -> None:
    put_dump(here, f"{A}-20261103T000000Z.dump")
    here.system.answers = [(b"PGDMP", Captured(1, (DUMPED, end(plan=PLAN, error=wrong("migrate"))), "exit-code"))]
    with pytest.raises(QuintetError):
        migrate.migrate(here.host, "shop", generation(here))
    assert len(dumps(here)) == 2


def test_a_generation_of_an_earlier_version(here: Machine) -> None:
    (here.layout.generation("shop", B) / "units/migrate_app.py").unlink()
    with pytest.raises(QuintetError, match="can't migrate a database"):
        migrate.migrate(here.host, "shop", generation(here))


def test_restore_runs_with_the_current_generation_and_records_what_is_there_then(here: Machine) -> None:
    path = put_dump(here, f"{B}-20261123T190000Z.dump")
    applied = here.layout.state("shop") / "migrations.json"
    applied.write_text('{"chat": ["0001_initial", "0002_topic"]}')
    here.system.answers = [Captured(0, (end(known={"chat": ["0000_gone", "0001_initial"]}),), "success")] * 2
    migrate.restore(here.host, "shop", path)
    migrate.restore(here.host, "shop", Path(path.name))
    assert {command[0] for _, _, command in here.system.captured} == {
        f"{here.layout.generation('shop', A)}/venv/bin/python"
    }
    assert json.loads(applied.read_text()) == {"chat": ["0001_initial"]}


def test_a_restore_that_fails(here: Machine) -> None:
    path = put_dump(here, f"{B}-20261123T190000Z.dump")
    here.system.answers = [Captured(1, ("no", end(known=None, error=wrong("restore"))), "exit-code")]
    with pytest.raises(QuintetError) as caught:
        migrate.restore(here.host, "shop", path)
    assert str(path) in caught.value.where
    assert caught.value.details == ("no",)


def test_only_the_app_s_own_dumps_are_restored(here: Machine, tmp_path: Path) -> None:
    good = put_dump(here, f"{B}-20261123T190000Z.dump")
    elsewhere = tmp_path / good.name
    elsewhere.write_bytes(good.read_bytes())
    link = good.with_name(f"{A}-20261123T190000Z.dump")
    link.symlink_to(elsewhere)
    writable = put_dump(here, f"{A}-20261123T190001Z.dump")
    writable.chmod(0o666)
    text = put_dump(here, f"{A}-20261123T190002Z.dump", b"DROP TABLE everything;")
    for path in (elsewhere, link, writable, text, good.with_name("missing.dump"), Path("../../..") / elsewhere):
        with pytest.raises(QuintetError, match="so it is not restored") as caught:
            migrate.restore(here.host, "shop", path)
        assert good.name in caught.value.where
    assert here.system.captured == []


# ---- migrate_app.py -------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A Django project with one app, two migrations, and a database that is a file."""
    (tmp_path / "settings.py").write_text(
        "SECRET_KEY = 'x'\nINSTALLED_APPS = ['chat']\nDEFAULT_AUTO_FIELD = 'django.db.models.BigAutoField'\n"
        "DATABASES = {'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': 'db.sqlite'}}\n"
    )
    (tmp_path / "chat/migrations").mkdir(parents=True)
    for package in ("chat", "chat/migrations"):
        (tmp_path / package / "__init__.py").touch()
    add_migration(tmp_path, "0001_initial", "migrations.RunSQL('CREATE TABLE one (id int)', 'DROP TABLE one')")
    return tmp_path


def add_migration(project: Path, name: str, operation: str, **more: Any) -> None:
    before = [path.stem for path in sorted((project / "chat/migrations").glob("0*.py")) if path.stem < name]
    needed = [("chat", one) for one in before[-1:]]
    lines = ["from django.db import migrations", "class Migration(migrations.Migration):"]
    lines += [f"    dependencies = {needed!r}", f"    operations = [{operation}]"]
    lines += [f"    {member} = {value!r}" for member, value in more.items()]
    (project / f"chat/migrations/{name}.py").write_text("\n".join(lines) + "\n")


def run(project: Path, *arguments: str, **environment: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    given = {"DJANGO_SETTINGS_MODULE": "settings", "PATH": "/usr/bin:/bin", **environment}
    command = [sys.executable, str(SCRIPT), *arguments]
    done = subprocess.run(command, cwd=project, env=given, capture_output=True, text=True, check=False)
    return done, json.loads(done.stderr.splitlines()[-1])


def test_the_plan_is_shown_then_applied_once(project: Path) -> None:
    add_migration(project, "0002_size", "migrations.RunSQL('CREATE TABLE two (id int)')")
    talk = "lambda apps, editor: (print('no dump'), __import__('os').system('echo no dump'))"
    add_migration(project, "0003_talk", f"migrations.RunPython({talk})")
    _, planned = run(project, "plan")
    done, last = run(project, "migrate")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "", "nothing but a dump goes there"
    lines = done.stderr.splitlines()
    assert lines[1:4] == [
        "  chat.0001_initial",
        "  chat.0002_size (can't be reversed)",
        "  chat.0003_talk (can't be reversed)",
    ]
    names = ["0001_initial", "0002_size", "0003_talk"]
    assert last["applied"] == last["plan"] == planned["plan"] == [f"chat.{name}" for name in names]
    assert (planned["applied"], planned["irreversible"]) == ([], ["chat.0002_size", "chat.0003_talk"])
    assert last["known"] == {"chat": names}
    again, last = run(project, "migrate", "--dump")
    assert again.returncode == 0, "nothing to migrate needs no dump"
    assert (last["plan"], last["applied"], last["known"]) == ([], [], {"chat": names})


def test_a_migration_that_fails_is_named_with_what_was_applied_before_it(project: Path) -> None:
    add_migration(project, "0002_size", "migrations.RunSQL('CREATE TABLE one (id int)')")
    done, last = run(project, "migrate")
    assert done.returncode == 1
    assert last["applied"] == ["chat.0001_initial"]
    assert last["error"]["what"].startswith("chat.0002_size failed: OperationalError: table one already exists")
    assert last["error"]["step"] == "migrate"


def test_what_cannot_be_dumped_is_not_migrated(project: Path) -> None:
    done, last = run(project, "migrate", "--dump")
    assert done.returncode == 1
    assert last["error"]["step"] == "dump"
    assert "dump.enabled" in last["error"]["remedy"]
    assert last["applied"] == []
    assert run(project, "migrate")[1]["applied"] == ["chat.0001_initial"]


def test_replaced_migrations_are_left_out_of_what_the_database_has(project: Path) -> None:
    run(project, "migrate")
    add_migration(project, "0001_a_squashed", "migrations.RunSQL('SELECT 1')", replaces=[("chat", "0001_initial")])
    done, last = run(project, "migrate")
    assert done.returncode == 0, done.stderr
    assert last["known"] == {"chat": ["0001_a_squashed"]}


def test_an_app_without_a_database_has_nothing_to_migrate(project: Path) -> None:
    text = (project / "settings.py").read_text()
    (project / "settings.py").write_text(text[: text.index("DATABASES")])
    done, last = run(project, "migrate", "--dump")
    assert done.returncode == 0
    assert (last["plan"], last["known"], last["error"]) == ([], None, None)


@pytest.mark.parametrize(
    ("settings", "step"),
    [("absent", "settings"), ("away", "database")],
)
def test_what_keeps_it_from_the_database_is_told(project: Path, settings: str, step: str) -> None:
    text = (project / "settings.py").read_text().replace("db.sqlite", "/nowhere/db.sqlite")
    (project / "away.py").write_text(text)
    done, last = run(project, "migrate", DJANGO_SETTINGS_MODULE=settings)
    assert done.returncode == 1
    assert last["error"]["step"] == step
    assert last["known"] is None


@pytest.fixture(scope="module")
def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("migrate_app", SCRIPT)
    assert spec
    assert spec.loader
    loaded = importlib.util.module_from_spec(spec)
    sys.modules["migrate_app"] = loaded
    spec.loader.exec_module(loaded)
    return loaded


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("3584; 0 0 ACL - SCHEMA public pg_database_owner", True),
        ("3585; 0 0 COMMENT - EXTENSION pg_trgm ", True),
        ("224; 1259 16409 TABLE public auth_group chat", False),
        ("225; 0 0 ACL public TABLE auth_group chat", False),
        ("226; 0 0 COMMENT public TABLE auth_group chat", False),
        ("2; 3079 16400 EXTENSION - pg_trgm ", False),
    ],
)
def test_what_only_a_superuser_may_set_is_not_restored(module: ModuleType, line: str, kept: bool) -> None:
    assert bool(module.KEPT_ENTRIES.match(line)) is kept


def test_a_reader_whose_writer_fails_never_sees_an_end(module: ModuleType, tmp_path: Path) -> None:
    # The reader commits at the end of its input, as psql does.
    reader = ["sh", "-c", f"cat > /dev/null && touch {tmp_path}/committed"]
    assert module.piped(["sh", "-c", "echo one; exit 1"], reader, {}) is False
    assert not (tmp_path / "committed").exists()
    assert module.piped(["echo", "one"], reader, {}) is True
    assert (tmp_path / "committed").exists()
    assert module.piped(["yes"], ["sh", "-c", "exit 1"], {}) is False


def test_lock_timeouts_are_told_from_other_errors(module: ModuleType) -> None:
    class Psycopg(Exception):
        def __init__(self, sqlstate: str) -> None:
            self.sqlstate = sqlstate

    for code, expected in (("55P03", True), ("22012", False)):
        outer = RuntimeError()
        outer.__cause__ = Psycopg(code)
        assert module.is_lock_timeout(outer) is expected


def test_the_password_is_in_no_command(module: ModuleType) -> None:
    class Client:
        @staticmethod
        def settings_to_cmd_args_env(settings: Any, parameters: Any) -> tuple[list[str], dict[str, str]]:
            return ["psql", "-U", settings["USER"], "-h", settings["HOST"], settings["NAME"]], {"PGPASSWORD": "secret"}

    class Connection:
        client = Client
        settings_dict: ClassVar = {"NAME": "shop", "USER": "app", "HOST": "db", "PASSWORD": "secret"}

    command, environment = module.connected(Connection, "true", "dump", "--format=custom")
    assert command[1:] == ["--no-password", "--format=custom", "-U", "app", "-h", "db", "--dbname=shop"]
    assert environment["PGPASSWORD"] == "secret"
