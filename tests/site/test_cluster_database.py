"""A database on a host of its own: who may do what in it, from where, and for how long (Molecule scenario cluster)."""

from __future__ import annotations

import json
import re
import subprocess
import textwrap
from collections.abc import Iterator

import pytest
from cluster import ADDRESSES, FOLDER, HOSTS, SITE, site, unplugged
from hosts import Played, wait_for

pytestmark = pytest.mark.thorough

DATABASE = ADDRESSES["db1"]
CLIENT = "/etc/quintet-authority/private/clients/chat"
AUTHORITY = "/etc/quintet-authority"
OWNER = f"host={DATABASE} dbname=chat user=chat:owner sslmode=verify-full sslrootcert={AUTHORITY}/authority.pem"


def deploy() -> Played:
    return site("-e", "app=chat", playbook="playbooks/deploy.yml")


def administrator(statement: str) -> str:
    """Return what PostgreSQL's superuser is told."""
    return HOSTS["db1"].run("psql", "--username=postgres", "--dbname=chat", "-tAc", statement).strip()


def asked(url: str, statement: str, host: str = "app1") -> str:
    """Return what root of a host is told with these connection parameters, errors among it."""
    words = ["psql", "--no-password", "--no-psqlrc", url, "-tAc", statement]
    return HOSTS[host].run(*words, check=False).strip()


def running(*statements: str, host: str = "app1") -> list[str]:
    """Return what the running app is told of each statement: with its own settings, user, and sandbox."""
    script = f"""
        from django.db import connection
        for statement in {statements!r}:
            try:
                with connection.cursor() as cursor:
                    cursor.execute(statement)
                    print("told:", *(cursor.fetchone() or ()) if cursor.description else ("done",))
            except Exception as error:
                print("told:", type(error).__name__, str(error).splitlines()[0])
    """
    told = HOSTS[host].run("quintet", "manage", "chat", "--", "shell", "-c", textwrap.dedent(script))
    return [line.removeprefix("told: ") for line in told.splitlines() if line.startswith("told:")]


def credential(name: str, host: str = "app1") -> str:
    """Return a secret of the generation that serves."""
    revision = json.loads(HOSTS[host].run("cat", "/srv/chat/current/generation.json"))["revision"]
    return HOSTS[host].run("cat", f"/etc/quintet/chat/revisions/{revision}/credentials/{name}")


# ---- what the running app may do --------------------------------------------------------------------------------------


def test_the_running_app_reads_and_writes() -> None:
    told = running(
        "SELECT current_user = session_user, current_user ~ '^chat_[12]$'",
        "INSERT INTO django_session VALUES ('a', 'b', now())",
        "UPDATE django_session SET session_data = 'c' WHERE session_key = 'a'",
        "DELETE FROM django_session WHERE session_key = 'a'",
    )
    assert told == ["True True", "done", "done", "done"]
    answer = SITE.get("/healthz")
    assert (answer.status, answer.json["status"]) == (200, "ok")


def test_the_running_app_changes_no_schema() -> None:
    told = running(
        "CREATE TABLE mine (id int)",
        "CREATE SCHEMA mine",
        "CREATE TEMPORARY TABLE mine (id int)",
        "ALTER TABLE django_session ADD COLUMN mine int",
        "DROP TABLE django_session",
        "TRUNCATE django_session",
        "SET ROLE chat",
        'SET ROLE "chat:owner"',
        "GRANT chat TO chat_1",
        "CREATE ROLE mine",
    )
    assert len(told) == 10
    assert [one for one in told if "denied" not in one and "must be owner" not in one] == []


def test_the_running_app_enters_no_other_database() -> None:
    direct = credential("DATABASE_DIRECT_URL")
    assert asked(direct, "SELECT 1") == "1"
    assert "no pg_hba.conf entry" in asked(direct.replace(":5432/chat", ":5432/postgres"), "SELECT 1")


# ---- who migrates -----------------------------------------------------------------------------------------------------


def test_all_belongs_to_the_owner() -> None:
    owners = "SELECT string_agg(DISTINCT tableowner, ',') FROM pg_tables WHERE schemaname = 'public'"
    assert administrator(owners) == "chat"
    assert administrator("SELECT count(*) > 5 FROM pg_tables WHERE schemaname = 'public'") == "t"


@pytest.fixture
def later() -> Iterator[None]:
    """Deploy the app with a migration more, and take both back."""
    migration = FOLDER / "sample_app/chat/migrations/9001_later.py"
    newest = max(path.stem for path in migration.parent.glob("0*.py"))
    migration.write_text(
        textwrap.dedent(
            f"""
            from django.db import migrations

            CREATE = "CREATE TABLE later (id serial PRIMARY KEY, word text); CREATE SCHEMA apart; CREATE TABLE apart.more (id int);"


            class Migration(migrations.Migration):
                dependencies = [("chat", "{newest}")]
                operations = [migrations.RunSQL(CREATE, "DROP TABLE later; DROP SCHEMA apart CASCADE")]
            """
        ).lstrip()
    )
    played = deploy()
    assert played.code == 0, played.output[-6000:]
    try:
        yield
    finally:
        migration.unlink()
        # By the dump from before it, which the owner puts back.
        dump = HOSTS["app1"].run("sh", "-c", "ls -t /var/lib/quintet/chat/dumps | head -1").strip()
        HOSTS["app1"].run("quintet", "restore", "chat", dump)
        played = deploy()
        assert played.code == 0, played.output[-6000:]


@pytest.mark.usefixtures("later")
def test_a_later_migration_is_the_owners_and_the_running_app_writes_to_its_tables() -> None:
    assert administrator("SELECT tableowner FROM pg_tables WHERE tablename = 'later'") == "chat"
    written, more, altered, made = running(
        "INSERT INTO later (word) VALUES ('x') RETURNING id",
        "INSERT INTO apart.more VALUES (1) RETURNING id",
        "ALTER TABLE later ADD COLUMN mine int",
        "CREATE TABLE apart.mine (id int)",
        host="app2",
    )
    assert (written, more) == ("1", "1")
    assert "must be owner" in altered
    assert "denied" in made
    # The dump from before it was made by the owner, and on one host only.
    dumps = [
        HOSTS[name].run("sh", "-c", "ls /var/lib/quintet/chat/dumps 2>/dev/null | wc -l").strip()
        for name in ("app1", "app2")
    ]
    assert dumps == ["1", "0"]


def test_what_the_owner_has_put_back_is_what_the_running_app_has_rights_to() -> None:
    assert administrator("SELECT to_regclass('later') IS NULL, to_regnamespace('apart') IS NULL") == "t|t"
    told = running(
        "INSERT INTO django_session VALUES ('a', 'b', now())",
        "DELETE FROM django_session WHERE session_key = 'a'",
        "DROP TABLE django_session",
    )
    assert told[:2] == ["done", "done"]
    assert "must be owner" in told[2]
    assert (
        administrator("SELECT string_agg(DISTINCT tableowner, ',') FROM pg_tables WHERE schemaname = 'public'")
        == "chat"
    )


def test_logins_that_were_the_owner_are_granted_what_is_there_and_are_the_owner_no_more() -> None:
    # As a version before this one left them.
    for login in ("chat_1", "chat_2"):
        if administrator(f"SELECT to_regrole('{login}') IS NOT NULL") == "t":
            administrator(f"GRANT chat TO {login}; ALTER ROLE {login} IN DATABASE chat SET role TO chat")
            administrator(f'REVOKE "chat:app" FROM {login}')
    administrator('DROP OWNED BY "chat:app"; DROP ROLE "chat:app"')
    played = site("--tags", "postgresql")
    assert played.code == 0, played.output[-6000:]
    # A session that was open then is the owner's until it ends.
    administrator("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename ~ '^chat_[12]$'")
    wait_for("the app", lambda: SITE.get("/healthz").status == 200)
    reads, owns = running("SELECT count(*) >= 0 FROM django_session", "CREATE TABLE mine (id int)")
    assert reads == "True"
    assert "denied" in owns


@pytest.mark.usefixtures("no_firewall")
def test_only_an_app_host_with_its_certificate_is_the_owner() -> None:
    own = f"{OWNER} sslcert={CLIENT}/certificate.pem sslkey={CLIENT}/key.pem"
    for name in ("app1", "app2"):
        assert asked(own, "SELECT session_user, current_user", name) == "chat:owner|chat"
    # A host's own certificate is good for its name alone, and none is none.
    other = f"{OWNER} sslcert={AUTHORITY}/certificate.pem sslkey={AUTHORITY}/private/key.pem"
    assert "certificate authentication failed" in asked(other, "SELECT 1")
    assert "valid client certificate" in asked(OWNER, "SELECT 1")
    assert "no encryption" in asked(OWNER.replace("verify-full", "disable"), "SELECT 1")
    # Nobody is the role that owns it, nor is there a password.
    for role in ("chat", "postgres"):
        assert "no pg_hba.conf entry" in asked(own.replace("chat:owner", role), "SELECT 1")


@pytest.mark.usefixtures("no_firewall")
def test_the_owners_certificate_is_worth_nothing_elsewhere() -> None:
    own = f"{OWNER} sslcert=/root/stolen/certificate.pem sslkey=/root/stolen/key.pem".replace(AUTHORITY, "/root/stolen")
    stranger = HOSTS["stranger"]
    stranger.run("install", "-d", "-m", "0700", "/root/stolen")
    try:
        for path in (f"{AUTHORITY}/authority.pem", f"{CLIENT}/certificate.pem", f"{CLIENT}/key.pem"):
            name = path.rpartition("/")[2]
            stranger.run("sh", "-c", f"umask 077; cat > /root/stolen/{name}", stdin=HOSTS["app1"].run("cat", path))
        assert "no pg_hba.conf entry" in asked(own, "SELECT 1", "stranger")
    finally:
        stranger.run("rm", "-r", "/root/stolen")


def test_the_running_app_can_not_read_the_owners_key() -> None:
    assert HOSTS["app1"].fails("cat", f"{CLIENT}/key.pem", user="chat")
    lock = "SELECT pg_advisory_lock({}, {}), pg_sleep(120)".format(*migration_lock())
    # A migration that waits for another one: so it can be looked at.
    HOSTS["db1"].run("sh", "-c", f"psql -U postgres -d chat -c '{lock}' >/dev/null 2>&1 &")
    key = "classid = ({})::int4::oid AND objid = ({})::int4::oid".format(*migration_lock())
    held = f"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND {key}"
    wait_for("the lock", lambda: administrator(held) == "1")
    current = HOSTS["app1"].current("chat")
    HOSTS["app1"].run("sh", "-c", f"quintet migrate chat {current} >/dev/null 2>&1 &")
    unit = "quintet-migrate-chat.service"
    sessions = "SELECT count(*) > 0 FROM pg_stat_activity WHERE usename = 'chat:owner'"
    try:
        wait_for("its session", lambda: administrator(sessions) == "t")
        (process,) = HOSTS["app1"].processes(unit)
        key = f"/proc/{process}/root/run/credentials/{unit}/database-owner-key"
        assert "PRIVATE KEY" in HOSTS["app1"].run("cat", key)
        # Who runs as the app does is shown nothing of that process.
        assert may_read("/proc/self/environ", *generation_properties())
        for path in (key, f"/proc/{process}/environ", f"/run/credentials/{unit}/database-owner-key"):
            assert not may_read(path, *generation_properties()), path
    finally:
        sleeping = "FROM pg_stat_activity WHERE query LIKE '%pg_sleep(120)' AND pid <> pg_backend_pid()"
        administrator(f"SELECT pg_terminate_backend(pid) {sleeping}")
    wait_for("its end", lambda: not HOSTS["app1"].processes(unit))


def test_without_user_namespaces_the_group_is_a_wall_of_its_own() -> None:
    # As in an app whose sandbox has PrivateUsers taken out.
    group = json.loads(HOSTS["app1"].run("cat", "/etc/quintet/chat/settings.json"))["database_owner"]["group"]
    for first, may in (("chat", True), (group, False)):
        unit = f"quintet-seen-{first}.service"
        starts = ["systemd-run", "--quiet", "--collect", f"--unit={unit}", "--property=User=chat"]
        HOSTS["app1"].run(*starts, f"--property=Group={first}", "--property=SupplementaryGroups=chat", "sleep", "30")
        try:
            (process,) = HOSTS["app1"].processes(unit)
            path = f"/proc/{process}/root/etc/hostname"
            assert may_read(path, "User=chat", "Group=chat", "NoNewPrivileges=yes") is may
        finally:
            HOSTS["app1"].run("systemctl", "stop", unit)


def may_read(path: str, *properties: str) -> bool:
    """Say whether a process with these properties of a service reads a file of its host."""
    reads = ["systemd-run", "--quiet", "--pipe", "--wait", "--collect"]
    return not HOSTS["app1"].fails(*reads, *(f"--property={line}" for line in properties), "head", "-c1", path)


def generation_properties() -> list[str]:
    """Return what the running app's processes run under."""
    properties = json.loads(HOSTS["app1"].run("cat", "/srv/chat/current/generation.json"))["properties"]
    return ["User=chat", "Group=chat", *(line.replace("%%", "%") for line in properties)]


def migration_lock() -> tuple[int, int]:
    """Return the key of the lock under which migrations are made."""
    script = (
        "import sys; sys.path.insert(0, '/srv/chat/current/units'); import migrate_app; print(*migrate_app.LOCK_KEY)"
    )
    first, second = HOSTS["app1"].run("python3", "-c", script).split()
    return int(first), int(second)


# ---- time-outs --------------------------------------------------------------------------------------------------------


def test_statements_of_the_running_app_end_after_their_time_and_migrations_have_none() -> None:
    names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    shown = "SELECT " + " || ' ' || ".join(f"current_setting('{name}')" for name in names)
    timed = "SELECT extract(epoch FROM clock_timestamp())"
    settings, began, ended, now = running(shown, timed, "SELECT pg_sleep(30)", timed)
    # As in the scenario's apps.yml, and two defaults.
    assert settings == "3s 10s 1min"
    assert ended == "OperationalError canceling statement due to statement timeout"
    assert 3 <= float(now) - float(began) < 10
    own = f"{OWNER} sslcert={CLIENT}/certificate.pem sslkey={CLIENT}/key.pem"
    assert asked(own, shown) == "0 0 0"


# ---- a network that is cut --------------------------------------------------------------------------------------------


def test_a_host_that_is_cut_off_loses_its_locks_in_seconds() -> None:
    holders = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND (classid, objid) = (7, 7)"
    held = "(echo 'SELECT pg_advisory_lock(7, 7);'; sleep 60) | psql --no-psqlrc \"$URL\""
    with subprocess.Popen(
        [
            "docker",
            "exec",
            "--env",
            f"URL={credential('DATABASE_DIRECT_URL', 'app2')}",
            HOSTS["app2"].name,
            "sh",
            "-c",
            held,
        ],
        stdout=subprocess.DEVNULL,
    ) as session:
        wait_for("the lock", lambda: administrator(holders) == "1")
        try:
            with unplugged("app2"):
                # Nothing is sent in either direction: 15 seconds, the next look, and what asking takes.
                assert 5 < wait_for("its end", lambda: administrator(holders) == "0") < 25
        finally:
            session.kill()
    wait_for("the host", lambda: HOSTS["app2"].name in {SITE.get("/telling").json["host"] for _ in range(10)})


# ---- PgBouncer --------------------------------------------------------------------------------------------------------


def test_the_running_app_comes_through_the_pool_and_knows_the_way_past_it() -> None:
    url, direct = credential("DATABASE_URL"), credential("DATABASE_DIRECT_URL")
    assert f"@{DATABASE}:6432/chat?" in url
    assert direct == url.replace(":6432/", ":5432/")
    # Over the socket there is nobody but PgBouncer.
    # Work that happens once holds its locks past it.
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE usename ~ '^chat_[12]$' AND application_name !~ '^quintet ' AND client_addr IS"
    assert SITE.get("/").status == 200
    assert int(administrator(f"{sessions} NULL")) > 0
    assert int(administrator(f"{sessions} NOT NULL")) == 0
    peer = "SELECT client_addr IS NULL FROM pg_stat_activity WHERE pid = pg_backend_pid()"
    assert (asked(url, peer), asked(direct, peer)) == ("t", "f")


def test_transactions_of_many_clients_share_the_pool() -> None:
    backends = {asked(credential("DATABASE_URL"), "SELECT pg_backend_pid()") for _ in range(5)}
    # Each of these had a connection, and a session, of its own; of PostgreSQL's one served most.
    assert len(backends) < 5


@pytest.mark.usefixtures("no_firewall")
def test_the_pool_lets_in_app_hosts_by_tls_and_with_a_password_only() -> None:
    url = credential("DATABASE_URL")
    assert asked(url, "SELECT 1", "app2") == "1"
    open_to_all = re.sub(r"[?].*", "?sslmode=require", url)
    assert asked(open_to_all, "SELECT 1") == "1"
    assert "no authentication method is found" in asked(open_to_all, "SELECT 1", "stranger")
    assert "SSL required" in asked(open_to_all.replace("require", "disable"), "SELECT 1")
    assert "authentication failed" in asked(re.sub(r":[^:@]+@", ":wrong@", open_to_all), "SELECT 1")
    # Neither its own database nor the owner's way is there.
    for other in (open_to_all.replace("/chat?", "/pgbouncer?"), open_to_all.replace("/chat?", "/postgres?")):
        assert "FATAL" in asked(other, "SELECT 1")
    own = f"{OWNER} port=6432 sslcert={CLIENT}/certificate.pem sslkey={CLIENT}/key.pem"
    assert "unknown ca" in asked(own, "SELECT 1")


def test_passwords_rotate_through_the_pool() -> None:
    before = credential("DATABASE_URL")
    played = site("-e", "app=chat", "-e", "secret=database", playbook="playbooks/rotate.yml")
    assert played.code == 0, played.output[-6000:]
    after = credential("DATABASE_URL", "app2")
    logins = {asked(url, "SELECT current_user") for url in (before, after)}
    assert logins == {"chat_1", "chat_2"}
    (login,) = running("SELECT current_user")
    assert f"//{login}:" in after
    assert SITE.get("/healthz").status == 200


# ---- connections ------------------------------------------------------------------------------------------------------


def test_there_are_connections_for_all_hosts_and_one_more() -> None:
    most = int(administrator("SHOW max_connections"))
    assert most % 100 == 0
    played = site("--tags", "postgresql", "-e", "postgresql_max_connections=20")
    assert played.code != 0
    assert "postgresql_max_connections: 20 are fewer than the" in played.output
    assert "The pool of chat: 20 x 2 logins = 40." in played.output
    assert int(administrator("SHOW max_connections")) == most
