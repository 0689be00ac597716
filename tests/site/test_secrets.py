"""The canary test: secrets of known texts go through every role and are found nowhere (Molecule scenario secrets).

First all that could show one is done while the processes are watched: a check, a change of all secrets in Vault and to a password for the
database, a build and a switch that fail, two rotations, a refusal; all at -vvv and with --diff. Then it is looked for in what was
printed, and on host and controller.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest
from canaries import Sightings, files_with, local_files_with, readers, seen_in, watched
from hosts import Host, Played, Site, hooking, managing, play, play_well, receive

HOST = Host("quintet-secrets")
HOME = Path(os.environ.get("MOLECULE_EPHEMERAL_DIRECTORY", "/nonexistent"))
TALKATIVE = ("--diff", "-vvv")
APPS = ("chat", "plain")
# Asks a service's socket for its one answer.
ASK = """
import socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
connection.sendall(b"GET / HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n")
print(connection.makefile("rb").read().split(b"\\r\\n\\r\\n")[1].decode())
"""


# Says which logins the sessions of chat's database have, as often as it can, until its standard input ends.
SESSIONS = """
import json, psycopg2, select, sys
connection = psycopg2.connect(dbname="postgres", user="postgres")
connection.autocommit = True
cursor, seen = connection.cursor(), set()
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0.02)[0]:
    cursor.execute("SELECT ARRAY(SELECT DISTINCT usename::text FROM pg_stat_activity WHERE datname = 'chat' ORDER BY 1)")
    seen.add(tuple(cursor.fetchone()[0]))
print(json.dumps(sorted(seen)))
"""

# Logs in with what standard input says, and once more each time that it is told to; the first session is asked each time, too.
LOG_IN = """
import json, psycopg2, sys
parameters = json.loads(sys.stdin.readline())
first = None
for line in sys.stdin:
    answer = {}
    for name in ("first", "another"):
        try:
            session = first if first and name == "first" else psycopg2.connect(dbname="chat", **parameters)
            first = first or session
            with session, session.cursor() as cursor:
                cursor.execute("SELECT session_user, current_user, (SELECT count(*) FROM chat_message)")
                answer[name] = list(cursor.fetchone()[:2])
        except psycopg2.Error as error:
            answer[name] = str(error)
    print(json.dumps(answer), flush=True)
"""


@dataclass(frozen=True)
class Accepted:
    """What the app of chat is given of the key and accepts: digests by name, and whether an old signature is good."""

    digests: dict[str, str] = field(default_factory=dict)
    is_good: bool = False


@dataclass
class Evidence:
    """What was printed by which run, what was seen of processes, and all values that secrets had."""

    played: dict[str, Played] = field(default_factory=dict)
    canaries: dict[str, str] = field(default_factory=dict)
    host: Sightings = field(default_factory=Sightings)
    controller: Sightings = field(default_factory=Sightings)
    signed: str = ""
    redis_since: str = ""
    # After the rotation of the key, and after the first change behind the end of the old one's time.
    rotated: Accepted = field(default_factory=Accepted)
    # What was answered all along the change to a password, by how often; and the password before its rotation.
    answers: dict[str, int] = field(default_factory=dict)
    # Logins of the sessions while chat went back to peer authentication and forth again.
    way_back: set[tuple[str, ...]] = field(default_factory=set)
    password: str = ""
    ended: Accepted = field(default_factory=Accepted)


def vault(*arguments: str, stdin: str | None = None) -> str:
    command = ["ansible-vault", *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=True, cwd=HOME)
    return done.stdout


def from_vault() -> dict[str, str]:
    """Return what the inventory's Vault has by name."""
    return dict(re.findall(r"^(\w+): (\S+)$", vault("view", "canaries.yml"), re.MULTILINE))


def change_vault() -> None:
    """Give the secrets of both apps that the inventory has new values."""
    changed = {name: f"canary-{name}-{uuid.uuid4().hex}" for name in ("mail", "token")}
    text = "".join(f"{name}: {value}\n" for name, value in {**from_vault(), **changed}.items())
    vault("encrypt", "--output", "canaries.yml", stdin=text)


def generated(app: str) -> dict[str, str]:
    kept: dict[str, str] = json.loads(HOST.run("cat", f"/etc/quintet/{app}/secrets.json"))
    return kept


def known() -> dict[str, str]:
    """Return all secrets as they are now, under names that tell different values apart."""
    values = [
        *from_vault().items(),
        *((f"{app}.{name}", value) for app in APPS for name, value in generated(app).items()),
    ]
    administrator = HOST.run("cat", "/etc/redis-chat/administrator")
    return {f"{name}={digest(value)[:6]}": value for name, value in [*values, ("administrator", administrator)]}


def digest(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()


def site(app: str) -> Site:
    return Site(HOST, f"{app}.test")


def redis_since() -> str:
    return HOST.run("systemctl", "show", "--property=ExecMainStartTimestampMonotonic", "redis-chat.service")


def now(signed: str) -> Accepted:
    """Ask chat for its secrets, and whether what was signed is still good."""
    told = site("chat").get("/canaries/digests").json["credentials"]
    return Accepted(told, site("chat").get(f"/canaries/unsign?signed={signed}").json["good"])


@contextmanager
def asked_all_along() -> Iterator[dict[str, int]]:
    """Ask chat for its health all the time; counts how often each answer came."""
    answers: dict[str, int] = {}
    end = threading.Event()

    def ask() -> None:
        while not end.is_set():
            try:
                answer = site("chat").get("/healthz")
                told = f"{answer.status} {answer.json['database']}" if answer.status == 200 else str(answer.status)
            except (OSError, ValueError, HTTPException) as error:
                told = type(error).__name__
            answers[told] = answers.get(told, 0) + 1
            end.wait(0.1)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answers
    finally:
        end.set()
        thread.join()


@contextmanager
def sessions() -> Iterator[set[tuple[str, ...]]]:
    """Watch who is logged in to chat's database; which logins there were at the same moment is there at the end."""
    command = ["docker", "exec", "--interactive", HOST.name, "python3", "-c", SESSIONS]
    seen: set[tuple[str, ...]] = set()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdin
        assert watcher.stdout
        assert watcher.stdout.readline() == "ready\n"
        try:
            yield seen
        finally:
            watcher.stdin.close()
            seen.update(tuple(logins) for logins in json.loads(watcher.stdout.read()))


@dataclass
class Client:
    """Who logs in to chat's database once more each time it is asked, and keeps the first session."""

    process: subprocess.Popen[str]

    def ask(self) -> dict[str, Any]:
        """Return what becomes of the first session and of a new one: the login and the role that acts, or the error."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


@contextmanager
def client(process_user: str, **parameters: str) -> Iterator[Client]:
    """Log in as a user of the system; the password goes by standard input."""
    command = ["docker", "exec", "--interactive", "--user", process_user, HOST.name, "python3", "-c", LOG_IN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        process.stdin.write(json.dumps({"host": "/var/run/postgresql", **parameters}) + "\n")
        yield Client(process)
        process.stdin.close()


def backends() -> set[str]:
    """Return the processes of the sessions that the app has with its present login."""
    query = "SELECT pid FROM pg_stat_activity WHERE datname = 'chat' AND usename = 'chat_2'"
    return set(HOST.run("psql", "-U", "postgres", "-Atc", query).split())


def back_and_forth() -> None:
    """Go back to the generation before, and forth again."""
    newest = HOST.current("chat")
    HOST.quintet("rollback", "chat")
    assert HOST.current("chat") != newest
    health = site("chat").get("/healthz").json
    assert (health["channel_layer"], health["database"]) == ("ok", "ok")
    HOST.quintet("activate", "chat", newest)
    assert HOST.current("chat") == newest


def end_the_time_of_fallbacks() -> None:
    """Date back the end of the time of chat's old keys."""
    store = "/etc/quintet/chat/rotations.json"
    kept = json.loads(HOST.run("cat", store))
    assert kept["SECRET_KEY"]["old"]
    for entry in kept["SECRET_KEY"]["old"]:
        entry["until"] = "2020-01-01T00:00:00Z"
    HOST.run("sh", "-c", f"umask 077; cat > {store}", stdin=json.dumps(kept))


@pytest.fixture(scope="module", autouse=True)
def vault_password() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANSIBLE_VAULT_PASSWORD_FILE", str(HOME / "vault_password"))
        yield


@pytest.fixture(scope="module")
def evidence(vault_password: None) -> Evidence:
    found = Evidence(redis_since=redis_since())
    found.played["converge"] = Played(0, (HOME / "runs/converge.txt").read_text())
    found.canaries |= known()
    found.signed = site("chat").get("/canaries/sign").json["signed"]
    change_vault()
    found.canaries |= known()

    def run(name: str, *arguments: str) -> None:
        # Watched for what is a secret before the run; what a rotation makes is one in the next.
        began = time.monotonic()
        with watched(found.canaries, HOST) as host, watched(found.canaries) as controller:
            found.played[name] = play(*arguments, *TALKATIVE)
        print(f"\n{name}: {time.monotonic() - began:.0f} s", end="")
        found.host.add({"rounds": host.rounds, "seen": host.seen})
        found.controller.add({"rounds": controller.rounds, "seen": controller.seen})
        found.canaries |= known()

    chat = ("-e", "app=chat")
    run("check", "playbooks/deploy.yml", "--check", *chat)
    (HOME / "database_login").write_text("password")
    with asked_all_along() as found.answers:
        run("change", "site.yml")
    with sessions() as found.way_back:
        back_and_forth()
    run("failing build", "playbooks/deploy.yml", *chat, "-e", "fault=build")
    run("failing switch", "playbooks/deploy.yml", *chat, "-e", "fault=probe")
    run("rotation", "playbooks/rotate.yml", *chat, "-e", "secret=SECRET_KEY")
    found.rotated = now(found.signed)
    end_the_time_of_fallbacks()
    found.password = generated("chat")["DATABASE_PASSWORD"]
    run("rotation of passwords", "playbooks/rotate.yml", *chat, "-e", "secret=channel_layer,database")
    found.ended = now(found.signed)
    run("second converge", "site.yml", "--check", "--tags", "redis,postgresql")
    run("refusal", "molecule/secrets/refused.yml")
    return found


def test_the_runs_did_what_they_were_meant_to(evidence: Evidence) -> None:
    codes = {name: played.code for name, played in evidence.played.items()}
    assert {name for name, code in codes.items() if code != 0} == {"failing build", "failing switch", "refusal"}, codes
    assert "would build generation" in evidence.played["check"].output
    assert "told to fail" in evidence.played["failing build"].output
    assert "instead of 418" in evidence.played["failing switch"].output
    assert "Validation of arguments failed" in evidence.played["refusal"].text
    # Chat's four secrets before and after, plain's two and one of them before, those of two services; and the administrator of Redis.
    assert len(evidence.canaries) == 14


def test_each_canary_is_in_use(evidence: Evidence) -> None:
    values = {app: generated(app) for app in APPS}
    given = from_vault()
    chat, plain = (site(app).get("/canaries/digests").json for app in APPS)
    password = values["chat"]["DATABASE_PASSWORD"]
    assert chat["credentials"] == {
        "SECRET_KEY": digest(values["chat"]["SECRET_KEY"]),
        "CHANNEL_LAYER_PASSWORD": digest(values["chat"]["CHANNEL_LAYER_PASSWORD"]),
        "MAIL_PASSWORD": digest(given["mail"]),
        "DATABASE_PASSWORD": digest(password),
        # In which the search would find the password.
        "DATABASE_URL": digest(f"postgresql://chat_2:{password}@%2Fvar%2Frun%2Fpostgresql/chat"),
    }
    assert chat["environment"] == {}
    assert chat["secret_key"] == chat["credentials"]["SECRET_KEY"]
    assert plain["environment"] == {
        "SECRET_KEY": digest(values["plain"]["SECRET_KEY"]),
        "API_TOKEN": digest(given["token"]),
    }
    assert plain["credentials"] == {}
    for name, socket in (
        ("hello", "gunicorn-telling_hello/gunicorn.sock"),
        ("echo", "daphne-telling_echo/daphne.sock"),
    ):
        assert HOST.run("python3", "-c", ASK, f"/run/{socket}").strip() == digest(given[name])


def test_nothing_is_in_what_the_runs_printed(evidence: Evidence) -> None:
    for name, played in evidence.played.items():
        assert len(played.output) > 5000, name
        assert seen_in(played.output, evidence.canaries) == [], name
    planted = {"planted": f"canary-planted-{uuid.uuid4().hex}"}
    told = subprocess.run(
        ["ansible", "localhost", "-c", "local", "-m", "ansible.builtin.debug", "-a", f"msg={planted['planted']}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert seen_in(told.stdout, planted) == ["planted"]


def test_nothing_is_in_the_journal_or_in_what_systemd_tells_everybody(evidence: Evidence) -> None:
    planted = {"planted": f"canary-planted-{uuid.uuid4().hex}"}
    HOST.run("systemd-cat", stdin=planted["planted"])
    HOST.run("journalctl", "--sync")
    journal = HOST.run("journalctl", "--no-pager", "--output=json", "--all")
    assert seen_in(journal, {**evidence.canaries, **planted}) == ["planted"]
    told = HOST.run("systemctl", "show", "--all", "*", user="nobody")
    assert "redis-chat.service" in told
    assert seen_in(told, evidence.canaries) == []


def test_nothing_is_in_a_list_of_processes_or_in_anothers_environment(evidence: Evidence) -> None:
    entitled = {int(HOST.run("id", "--user", user)) for user in ("plain_user", "telling_echo")}
    print(
        f"\nlooked at all processes {evidence.host.rounds} times on the host and {evidence.controller.rounds} on the controller"
    )
    assert evidence.host.rounds > 1000
    assert evidence.controller.rounds > 1000
    assert evidence.controller.seen == []
    assert [sight for sight in evidence.host.seen if sight[0] == "cmdline"] == []
    # Those two apps read nothing but their environment; systemd, as root, hands it to them.
    assert {user for _, user, _, _ in evidence.host.seen} - {0} <= entitled
    assert {user for _, user, _, _ in evidence.host.seen} & entitled == entitled
    assert {name.split("=")[0].split(" ")[0] for _, _, name, _ in evidence.host.seen} == {
        "plain.SECRET_KEY",
        "token",
        "echo",
    }


def test_the_watch_sees_a_planted_one() -> None:
    planted = {"one": f"canary-planted-{uuid.uuid4().hex}", "two": f"canary-planted-{uuid.uuid4().hex}"}
    nobody = int(HOST.run("id", "--user", "nobody"))
    with watched(planted, HOST) as host, watched(planted) as controller:
        HOST.run("env", f"TWO={planted['two']}", "sh", "-c", "sleep 0.3; true", planted["one"], user="nobody")
    assert {("cmdline", nobody, "one"), ("environ", nobody, "two")} <= {sight[:3] for sight in host.seen}
    # The engine's own client, which had both in its arguments.
    assert {(place, name) for place, _, name, _ in controller.seen} == {("cmdline", "one"), ("cmdline", "two")}


CHATS_UNITS = "gunicorn-chat|daphne-chat-1|worker-chat-idle-1|timer-chat-idle"


def entitled(path: str) -> list[str] | None:
    """Return who, besides root, may read a file that has a secret; None for a file that must have none."""
    if re.fullmatch(r"/etc/quintet/(chat|plain)/(secrets|rotations)\.json", path):
        return []
    if re.fullmatch(r"/etc/quintet/(chat/revisions/\d+/credentials/\w+|plain/revisions/\d+/environment)", path):
        return []
    if re.fullmatch(r"/etc/telling/(TOKEN|environment)|/etc/redis-chat/administrator", path):
        return []
    # Of a service, which alone sees its own. Those that have their secrets in the environment are not among them.
    unit = re.fullmatch(r"/run/credentials/([^/]+)\.service/\w+", path)
    if unit and re.fullmatch(
        rf"({CHATS_UNITS})@[0-9a-f]{{8}}-[0-9a-f]{{8}}|quintet-(hook|manage)-chat(-[0-9a-f-]+)?", unit[1]
    ):
        return ["chat"]
    return ["telling_hello"] if unit and unit[1] == "gunicorn-telling_hello" else None


def test_nothing_is_in_a_file_but_those_of_root_and_of_who_needs_it(evidence: Evidence) -> None:
    planted = {"planted": f"canary-planted-{uuid.uuid4().hex}"}
    HOST.run("sh", "-c", "umask 022; cat > /var/tmp/planted~", stdin=planted["planted"])
    HOST.run("systemctl", "start", "--no-block", f"timer-chat-idle@{HOST.current('chat')}.service")
    try:
        with managing(HOST, "chat"), hooking(HOST, "chat"):
            paths = files_with(HOST, {**evidence.canaries, **planted})
            found = readers(HOST, paths)
    finally:
        HOST.run("rm", "/var/tmp/planted~")
    assert "nobody" in found.pop("/var/tmp/planted~")
    assert [path for path in found if entitled(path) is None] == []
    assert {path: users for path, users in found.items() if users != entitled(path)} == {}
    # Each kind of place is there, so that the list is no wish.
    for kind in (
        "/secrets.json",
        "/rotations.json",
        "/credentials/MAIL_PASSWORD",
        "plain/",
        "/etc/telling",
        "/run/credentials/gunicorn-telling_hello.",
        *(f"/run/credentials/{unit}@" for unit in CHATS_UNITS.split("|")),
        "/run/credentials/quintet-hook-chat",
        "/run/credentials/quintet-manage-chat",
    ):
        assert any(kind in path for path in found), kind


def test_nothing_is_left_of_the_runs(evidence: Evidence) -> None:
    left = HOST.run("find", "/root", "/tmp", "/var/tmp", "/run", "-name", "*ansible*", check=False).splitlines()
    assert [path for path in left if "ansible-tmp" in path or "AnsiballZ" in path] == []
    places = [Path.home() / ".ansible/tmp", *Path(tempfile.gettempdir()).glob("ansible*"), HOME]
    planted = {"planted": f"canary-planted-{uuid.uuid4().hex}"}
    mark = HOME / "planted"
    mark.write_text(planted["planted"])
    try:
        assert local_files_with([path for path in places if path.exists()], {**evidence.canaries, **planted}) == [
            str(mark)
        ]
    finally:
        mark.unlink()


# ---- rotations ----------------------------------------------------------------------------------------------------


def rotate(secret: str, *more: str) -> Played:
    return play_well("playbooks/rotate.yml", "-e", "app=chat", "-e", f"secret={secret}", *more)


def test_a_second_converge_after_the_rotations_changes_nothing(evidence: Evidence) -> None:
    assert evidence.played["second converge"].changed == 0, evidence.played["second converge"].changed_tasks


def test_a_rotated_key_still_accepts_what_the_old_one_signed(evidence: Evidence) -> None:
    told = evidence.rotated.digests
    assert told["SECRET_KEY_FALLBACKS"] != told["SECRET_KEY"] == digest(generated("chat")["SECRET_KEY"])
    assert evidence.rotated.is_good


def test_a_fallback_ends_with_its_time(evidence: Evidence) -> None:
    told = evidence.ended.digests
    assert "SECRET_KEY_FALLBACKS" not in told
    assert told["SECRET_KEY"] == evidence.rotated.digests["SECRET_KEY"]
    assert not evidence.ended.is_good


def test_a_password_for_the_database_comes_without_a_gap_and_goes_back_to_none(evidence: Evidence) -> None:
    print(f"\nanswers during the change: {evidence.answers}")
    assert evidence.answers.keys() == {"200 ok"}
    assert evidence.answers["200 ok"] > 100
    # By peer authentication and by password at the same moment.
    assert ("chat", "chat_1") in evidence.way_back


def test_both_generations_reach_redis_and_the_database_meanwhile_and_rollback_works(evidence: Evidence) -> None:
    assert redis_since() == evidence.redis_since
    with sessions() as seen:
        # Its probe asks the channel layer and the database, with the passwords from before.
        back_and_forth()
    print(f"\nlogins at the same moment: {sorted(seen)}")
    assert ("chat_1", "chat_2") in seen


def test_a_third_password_waits_for_the_first_ones_login(evidence: Evidence) -> None:
    before = generated("chat")
    played = play("playbooks/rotate.yml", "-e", "app=chat", "-e", "secret=database")
    assert played.code != 0
    assert "can have no new value yet" in played.text
    assert generated("chat") == before


def test_old_values_are_retired_and_nobody_is_disconnected(evidence: Evidence) -> None:
    before, connected = HOST.current("chat"), backends()
    old, new = evidence.password, generated("chat")["DATABASE_PASSWORD"]
    with (
        site("chat").websocket("/ws/rooms/lobby/") as connection,
        client("nobody", user="chat_1", password=old) as of_old,
        client("nobody", user="chat_2", password=new) as of_new,
        client("chat", user="chat") as without,
    ):
        receive(connection, "history")
        # Whoever logs in acts as the owner.
        assert of_old.ask() == {"first": ["chat_1", "chat"], "another": ["chat_1", "chat"]}
        assert without.ask() == {"first": ["chat", "chat"], "another": ["chat", "chat"]}
        assert "no old value is good any more" in rotate("channel_layer,database", "-e", "retire=true").text
        text = f"still here {uuid.uuid4()}"
        connection.send(json.dumps({"type": "message", "ref": str(uuid.uuid4()), "text": text}))
        assert receive(connection, "message")["text"] == text
        for gone, login, why in (
            (of_old, "chat_1", "password authentication failed"),
            (without, "chat", "not permitted to log in"),
        ):
            told = gone.ask()
            assert told["first"] == [login, "chat"]
            assert why in told["another"]
        assert of_new.ask()["another"] == ["chat_2", "chat"]
    assert connected
    assert connected <= backends()
    assert (redis_since(), HOST.current("chat")) == (evidence.redis_since, before)
    users = HOST.run("cat", "/etc/redis-chat/users.acl")
    assert f"user chat on #{digest(generated('chat')['CHANNEL_LAYER_PASSWORD'])} ~" in users
    with client("nobody", user="chat_2", password=old) as guessing, client("chat", user="chat_2") as nameless:
        assert "password authentication failed" in guessing.ask()["another"]
        assert "no password supplied" in nameless.ask()["another"]


@pytest.mark.parametrize(
    ("app", "secret", "told"),
    [
        ("plain", "database", "there is no password to rotate"),
        ("chat", "MAIL_PASSWORD", "has the value of this secret from the inventory"),
        ("chat", "NO_SUCH", "has no such secret"),
        ("chat", "", "which secret?"),
    ],
)
def test_what_cannot_be_rotated_is_told_and_changes_nothing(app: str, secret: str, told: str) -> None:
    before = HOST.run("find", f"/etc/quintet/{app}", "-printf", "%p %T@\n")
    played = play("playbooks/rotate.yml", "-e", f"app={app}", "-e", f"secret={secret}")
    assert played.code != 0
    assert told in played.text
    assert "Nothing was changed" in played.text
    assert HOST.run("find", f"/etc/quintet/{app}", "-printf", "%p %T@\n") == before
