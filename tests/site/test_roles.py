"""A stranger's playbook: unlike apps on one host by plain include_role (Molecule scenario roles)."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest
from hosts import ROOT, Answer, Host, Played, Site, play, play_well, receive, wait_for
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import ClientConnection, connect

HOST = Host("quintet-roles")
HELLO = Site(HOST, "hello.test")
HELLO_A = Site(HOST, "a.hello.test")
ECHO = Site(HOST, "echo.test")

BARE = "molecule/roles/bare.yml"

# The services of each app, as systemd knows them.
SERVICES = {
    "hello_a": "gunicorn-hello_a.service",
    "hello_b": "gunicorn-hello_b.service",
    "echo": "daphne-echo-1.service",
    "chat (HTTP)": "gunicorn-chat@*.service",
    "chat (WebSocket)": "daphne-chat-*@*.service",
    "chat (Redis)": "redis-chat.service",
    "PostgreSQL": "postgresql@*.service",
}


@pytest.fixture
def chat() -> Site:
    """The Channels app, as somebody new sees it."""
    return Site(HOST, "chat.test")


def processes() -> dict[str, set[int]]:
    """The main processes of all services."""
    found = {name: HOST.processes(pattern) for name, pattern in SERVICES.items()}
    assert all(found.values()), f"not all services run: {found}"
    return found


def workers(service: str) -> set[int]:
    """The processes of one Gunicorn's workers."""
    (master,) = HOST.processes(service)
    return {int(line) for line in HOST.run("cat", f"/proc/{master}/task/{master}/children").split()}


def shell(script: str) -> str:
    """What a line for the shell prints on the host; it must succeed."""
    return HOST.run("sh", "-c", script)


def live_tree() -> str:
    """Nginx's live tree with a digest of each file."""
    return shell("readlink /etc/nginx/quintet; cd /etc/nginx/quintet/ && find . -type f -exec sha256sum {} + | sort")


# ---- both apps answer ---------------------------------------------------------------------------------------------


def test_both_instances_answer_by_their_weights() -> None:
    answers = [HELLO.get("/").json for _ in range(60)]
    instances = Counter(answer["instance"] for answer in answers)
    assert set(instances) == {"hello_a", "hello_b"}
    # 2:1, with room for a connection that had to be tried again.
    assert 36 <= instances["hello_a"] <= 44, instances
    for name in instances:
        pids = {answer["pid"] for answer in answers if answer["instance"] == name}
        assert pids <= workers(f"gunicorn-{name}.service")


def test_the_bare_websocket_echoes() -> None:
    with ECHO.websocket("/any/path") as connection:
        for message in ("hello", "ünïcode", b"\x00bytes"):
            connection.send(message)
            assert connection.recv(timeout=20) == message
    assert ECHO.get("/").status == 426


def test_the_channels_app_answers_over_http(chat: Site) -> None:
    health = chat.get("/healthz").json
    assert (health["status"], health["database"], health["channel_layer"]) == ("ok", "ok", "ok")
    assert health["generation"] == HOST.current("chat")
    page = chat.get("/")
    assert page.status == 200
    style = re.search(r"/static/chat/[^\"]+\.css", page.body)
    assert style, page.body
    assert "immutable" in chat.get(style.group()).headers["cache-control"]


def test_the_channels_app_talks_over_websockets(chat: Site) -> None:
    text = f"hello from {uuid.uuid4()}"
    with chat.websocket("/ws/rooms/lobby/") as one, Site(HOST, "chat.test").websocket("/ws/rooms/lobby/") as other:
        for person in (one, other):
            receive(person, "history")
        one.send(json.dumps({"type": "message", "ref": str(uuid.uuid4()), "text": text}))
        receive(one, "ack")
        assert receive(other, "message")["text"] == text
    with pytest.raises(InvalidStatus) as refused:
        chat.websocket("/ws/rooms/lobby/", origin="http://hello.test")
    assert refused.value.response.status_code == 403


# ---- what reaches an app ------------------------------------------------------------------------------------------

# What a client may claim about itself, its way here and where the app is; each is believed by some server or library.
FORGED = {
    "X-Forwarded-For": "203.0.113.7",
    "X-Forwarded-Host": "evil.test",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Port": "443",
    "X-Forwarded-Ssl": "on",
    "X_Forwarded_For": "203.0.113.8",
    "Forwarded": "for=203.0.113.9;proto=https;host=evil.test",
    "X-Real-IP": "203.0.113.7",
    "X-Request-ID": "forged",
    "X-Script-Name": "/evil",
    "Script_Name": "/evil",
    "Script-Name": "/evil",
    "Daphne-Root-Path": "/evil",
    "Proxy": "http://evil.test:3128",
}
OWN = {"Accept-Language": "eo", "User-Agent": "somebody"}


def asked_over_http(site: Site) -> Any:
    """What reached an app with a plain request."""
    answer = site.get("/", {"Host": f"{site.domain}:8080", **OWN, **FORGED}).json
    return answer.get("request", answer)


def asked_over_websocket(site: Site) -> Any:
    """What reached an app with the handshake of a WebSocket."""
    with connect(
        f"ws://{site.domain}:8080/request",
        sock=socket.create_connection((HOST.address, 80), timeout=30),
        user_agent_header=None,
        additional_headers={**OWN, **FORGED},
        compression=None,
    ) as connection:
        return json.loads(connection.recv(timeout=20))


@pytest.mark.parametrize(
    ("site", "ask", "scheme"),
    [
        pytest.param(HELLO, asked_over_http, "http", id="Gunicorn"),
        pytest.param(ECHO, asked_over_http, "http", id="Daphne over HTTP"),
        pytest.param(ECHO, asked_over_websocket, "ws", id="Daphne over WebSocket"),
    ],
)
def test_nothing_that_a_client_claims_reaches_an_app(site: Site, ask: Callable[[Site], Any], scheme: str) -> None:
    with socket.create_connection((HOST.address, 80), timeout=30) as mine:
        address = mine.getsockname()[0]
    request = ask(site)
    (request_id,) = [value for name, value in request["headers"] if name == "x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", request_id)
    handshake = ("connection", "upgrade", "sec-websocket-key", "sec-websocket-version")
    headers = [pair for pair in request["headers"] if scheme == "http" or pair[0] not in handshake]
    assert headers == [
        *([["accept-encoding", "identity"]] if scheme == "http" else []),
        ["accept-language", "eo"],
        ["host", f"{site.domain}:8080"],
        ["user-agent", "somebody"],
        ["x-forwarded-for", address],
        ["x-forwarded-proto", "http"],
        ["x-real-ip", address],
        ["x-request-id", request_id],
    ]
    # Gunicorn leaves the client's address to its application.
    assert (request["scheme"], request["script_name"]) == (scheme, "")
    assert request["client"] == ("" if site is HELLO else address)


# ---- apps are apart -----------------------------------------------------------------------------------------------

# Run as an app's user, outside of its sandbox: what remains is what the files' owners and modes refuse.
ATTEMPTS = """
import json, os, socket, sys

def attempt(kind, path):
    try:
        if kind == "connect":
            with socket.socket(socket.AF_UNIX) as peer:
                peer.connect(path)
        elif kind == "read" and os.path.isdir(path):
            os.listdir(path)
        else:
            with open(path, {"read": "rb", "write": "ab"}[kind]) as file:
                kind == "read" and file.read(1)
    except OSError as error:
        return type(error).__name__
    return "done"

print(json.dumps([attempt(kind, path) for kind, path in json.loads(sys.argv[1])]))
"""

Attempt = tuple[str, str]


def attempts(user: str, wanted: list[Attempt]) -> dict[Attempt, str]:
    """Try to read, write and connect as a user; each is "done" or the error's name."""
    answer = HOST.run("python3", "-", json.dumps(wanted), user=user, stdin=ATTEMPTS)
    return dict(zip(wanted, json.loads(answer), strict=True))


def files(*places: str) -> list[str]:
    """All files below some places, as root finds them."""
    found = HOST.run("find", *places, "-type", "f").splitlines()
    assert found, places
    return found


SOCKETS = {
    "gunicorn-hello_a": "/run/gunicorn-hello_a/gunicorn.sock",
    "gunicorn-hello_b": "/run/gunicorn-hello_b/gunicorn.sock",
    "daphne-echo": "/run/daphne-echo/daphne.sock",
    "gunicorn-chat": "/srv/chat/current/run/gunicorn.sock",
    "daphne-chat": "/srv/chat/current/run/daphne.sock",
    "redis-chat": "/run/redis-chat/redis.sock",
}
USERS = ["hello_a", "hello_b", "echo", "chatter"]


@pytest.mark.parametrize("user", USERS)
def test_an_app_can_write_no_code_unit_setting_or_directory(user: str) -> None:
    existing = [
        *files("/srv/hello", "/srv/echo", "/etc/nginx/quintet/", "/etc/tmpfiles.d"),
        *files("/opt/quintet/gunicorn-hello_a/gunicorn.conf.py", "/opt/quintet/daphne-echo/daphne_launcher.py"),
        *(f"/opt/quintet/{name}/venv/pyvenv.cfg" for name in ("gunicorn-hello_a", "gunicorn-hello_b", "daphne-echo")),
        *files("/srv/chat/current/units/", "/etc/quintet/", "/var/lib/quintet/", "/usr/local/lib/quintet"),
        "/srv/chat/current/src/manage.py",
        "/srv/chat/current/venv/pyvenv.cfg",
        "/usr/local/sbin/quintet",
        *shell("cd /etc/systemd/system && ls -d $PWD/*-hello_?.* $PWD/*-echo* $PWD/*-chat.*").split(),
    ]
    directories = [
        "/opt/quintet",
        "/opt/quintet/gunicorn-hello_a",
        "/opt/quintet/daphne-echo/venv/bin",
        "/etc/systemd/system",
        "/etc/tmpfiles.d",
        "/run",
        *(str(Path(path).parent) for path in SOCKETS.values()),
        "/srv",
        "/srv/hello",
        "/srv/echo",
        "/srv/chat",
        "/srv/chat/generations",
        "/srv/chat/current",
        "/srv/chat/current/src",
        "/srv/chat/current/static",
        "/srv/chat/shared",
        "/etc/redis-chat",
    ]
    if user != "chatter":
        directories.append("/srv/chat/shared/media")
    found = attempts(user, [("write", path) for path in [*existing, *(f"{path}/new" for path in directories)]])
    assert {key: how for key, how in found.items() if how != "PermissionError"} == {}
    if user == "chatter":
        upload = "/srv/chat/shared/media/new"
        assert attempts(user, [("write", upload)])["write", upload] == "done"
        HOST.run("rm", upload)


@pytest.mark.parametrize("user", USERS)
def test_an_app_can_read_no_secret_and_no_code_or_environment_of_another(user: str) -> None:
    own = {"chatter": "chat"}.get(user, user)
    unreadable = [
        *files("/etc/quintet/chat", "/var/lib/quintet", "/etc/redis-chat", "/run/credentials/redis-chat.service"),
        "/srv/chat/current/generation.json",
        *(f"/proc/{pid}/environ" for app, pids in processes().items() if app.split()[0] != own for pid in pids),
    ]
    if own != "chat":
        unreadable += [*files("/srv/chat/current/src/"), "/srv/chat/current/src", "/srv/chat/current/venv/bin"]
    found = attempts(user, [("read", path) for path in unreadable])
    assert {key: how for key, how in found.items() if how != "PermissionError"} == {}


@pytest.mark.parametrize("user", [*USERS, "www-data"])
def test_a_socket_is_for_those_it_was_made_for(user: str) -> None:
    found = attempts(user, [("connect", path) for path in SOCKETS.values()])
    reached = {name for name, path in SOCKETS.items() if found[("connect", path)] == "done"}
    assert reached == {"www-data": set(SOCKETS) - {"redis-chat"}, "chatter": {"redis-chat"}}.get(user, set())
    assert set(found.values()) <= {"done", "PermissionError"}


@pytest.mark.parametrize("user", [*USERS, "www-data"])
def test_a_database_is_for_its_app(user: str) -> None:
    for role in ("chat", "chatter", "postgres", user):
        command = ("psql", "--dbname=chat", f"--username={role}", "--no-password", "--command=select 1")
        assert HOST.fails(*command, user=user) is not (user == role == "chatter"), f"{user} as {role}"


def redis_password() -> str:
    """The password that the stranger's playbook gave to its Redis."""
    return (Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "redis_password").read_text().split()[0]


def redis(*commands: str, password: str | None = None) -> list[str]:
    """What Redis answers to each command of the app's user, who logs in first when there is a password."""
    login = [f"AUTH chat {password}"] if password is not None else []
    answers = HOST.run(
        "redis-cli", "-s", SOCKETS["redis-chat"], user="chatter", stdin="\n".join([*login, *commands, ""])
    )
    lines = [line for line in answers.splitlines() if line]
    if login:
        assert lines.pop(0) == "OK", answers
    assert len(lines) == len(commands), answers
    return lines


def test_an_app_can_ask_of_its_redis_what_a_channel_layer_needs_and_nothing_else() -> None:
    password, key = redis_password(), f"asgi:test:{uuid.uuid4()}"
    assert redis(f"ZADD {key} 1 one", f"ZCOUNT {key} -inf +inf", password=password) == ["1", "1"]
    refused = [
        "FLUSHALL",
        "FLUSHDB",
        "KEYS *",
        "CONFIG GET *",
        "CONFIG SET maxmemory 1",
        "ACL LIST",
        "INFO",
        "SHUTDOWN NOSAVE",
        "EVAL \"return redis.call('FLUSHALL')\" 0",
        "ZADD other 1 one",
        "PUBLISH other one",
        "SUBSCRIBE other",
    ]
    answers = zip(refused, redis(*refused, password=password), strict=True)
    permitted = {
        asked: answer for asked, answer in answers if not re.match("NOPERM |ERR ACL failure in script", answer)
    }
    assert permitted == {}
    assert redis(f"DEL {key}", password=password) == ["1"], "a refused command emptied the database"


def test_redis_answers_nobody_without_the_password() -> None:
    refused = redis(
        "PING", "FLUSHALL", "ZADD asgi:x 1 one", "AUTH default x", "AUTH x", f"AUTH chat {'x' * 32}", "AUTH chat"
    )
    assert [answer.split()[0] for answer in refused] == ["NOAUTH"] * 3 + ["WRONGPASS"] * 4, refused


def test_redis_refuses_a_write_rather_than_drop_a_group() -> None:
    # What it was started with; its ACL lets nobody ask.
    settings = HOST.run("cat", "/run/credentials/redis-chat.service/redis.conf").splitlines()
    assert [line for line in settings if line.startswith("maxmemory-policy")] == ["maxmemory-policy noeviction"]


def test_the_strangers_password_is_shown_nowhere() -> None:
    password = redis_password()
    assert len(password) == 32
    for shown in (
        shell("cat /proc/[0-9]*/cmdline | tr '\\0' ' '"),
        shell("journalctl --no-pager --output=cat"),
        shell("cat /etc/systemd/system/*.service /etc/redis-chat/* /srv/chat/current/units/*"),
    ):
        assert password not in shown
    # It is the one in use, so this would see it.
    assert password in shell("cat /etc/quintet/chat/revisions/*/credentials/CHANNEL_LAYER_PASSWORD")


# ---- what people upload -------------------------------------------------------------------------------------------

MEDIA = "/srv/chat/shared/media"


def test_what_the_app_stores_is_served_and_no_link_leads_out(chat: Site) -> None:
    masks = {
        line
        for name in ("chat (HTTP)", "chat (WebSocket)")
        for pid in processes()[name]
        for line in HOST.run("cat", f"/proc/{pid}/status").splitlines()
        if line.startswith("Umask:")
    }
    assert masks == {"Umask:\t0022"}
    where = f"test-{uuid.uuid4()}"
    script = f"""
        umask 0022 && mkdir -p {where}/sub && cd {where}
        echo text | tee x.txt .hidden > sub/y.html
        ln -s x.txt own.txt; ln -s /etc/passwd passwd.txt; ln -s /etc directory
    """
    try:
        HOST.run("sh", "-euc", f"cd {MEDIA} && {script}", user="chatter")
        answers = {
            name: chat.get(f"/media/{where}/{name}")
            for name in (
                "x.txt",
                "sub/y.html",
                "own.txt",
                "passwd.txt",
                "directory/passwd",
                ".hidden",
                "sub/",
                "no.txt",
            )
        }
    finally:
        HOST.run("rm", "-rf", f"{MEDIA}/{where}")
    assert {name: answer.status for name, answer in answers.items()} == {
        "x.txt": 200,
        "sub/y.html": 200,
        "own.txt": 200,
        "passwd.txt": 403,
        "directory/passwd": 403,
        ".hidden": 404,
        "sub/": 403,
        "no.txt": 404,
    }
    assert answers["x.txt"].body == answers["sub/y.html"].body == "text\n"
    # A page would run its scripts as the site's own.
    assert answers["sub/y.html"].headers["content-disposition"] == "attachment"
    assert (
        answers["x.txt"].headers["x-content-type-options"]
        == answers["sub/y.html"].headers["x-content-type-options"]
        == "nosniff"
    )


# ---- changes ------------------------------------------------------------------------------------------------------


@contextmanager
def asking(site: Site) -> Iterator[list[Answer]]:
    """Ask for the site's first page again and again, at most 20 times a second; what fails to connect raises at the end."""
    answers: list[Answer] = []
    enough = threading.Event()

    def ask() -> None:
        while not enough.wait(0.05):
            answers.append(site.get("/"))

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask)
        try:
            yield answers
        finally:
            enough.set()
        asked.result()


def echoes(connection: ClientConnection, text: str) -> bool:
    """Say whether a message comes back; it doesn't where the connection is closed for it."""
    try:
        connection.send(text)
        return connection.recv(timeout=20) == text
    except ConnectionClosed:
        return False


def test_a_changed_setting_restarts_its_own_app_alone_and_refuses_nobody() -> None:
    before, tree = processes(), live_tree()
    count = len(workers("gunicorn-hello_a.service")) + 1
    setting = ("--extra-vars", f"hello_a_workers={count}")
    with ECHO.websocket("/") as connection, asking(HELLO_A) as answers:
        assert echoes(connection, "before")
        played = play_well(BARE, *setting)
        # Opened before the change of another app, and still there.
        assert echoes(connection, "after")
    assert {answer.status for answer in answers} == {200}
    assert len({answer.json["pid"] for answer in answers}) >= 2, "no request fell on the new process"
    # Its configuration and its restart.
    assert played.changed == 2, played.changed_tasks

    after = processes()
    assert after["hello_a"].isdisjoint(before["hello_a"])
    assert all(after[name] == before[name] for name in SERVICES if name != "hello_a"), (before, after)
    assert live_tree() == tree
    assert len(workers("gunicorn-hello_a.service")) == count

    # The same again.
    played = play_well(BARE, *setting)
    assert played.changed == 0, played.changed_tasks
    assert processes() == after


def test_check_mode_reports_what_a_run_would_change_and_nothing_else() -> None:
    before = processes()
    count = len(workers("gunicorn-hello_a.service")) + 1
    played = play_well(BARE, "--check", "--extra-vars", f"hello_a_workers={count}")
    assert played.changed >= 1
    assert all("gunicorn" in line for line in played.changed_tasks.splitlines()), played.changed_tasks
    assert processes() == before
    assert len(workers("gunicorn-hello_a.service")) == count - 1


def play_until(task: str, playbook: str, *arguments: str) -> None:
    """Run a playbook and kill it, without a chance to tidy up, when its output says that it begins a task."""
    inventory = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "inventory"
    running = subprocess.Popen(
        ["ansible-playbook", "-i", str(inventory), playbook, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "ANSIBLE_FORCE_COLOR": "false", "ANSIBLE_NOCOLOR": "true"},
    )
    assert running.stdout
    output = []
    for line in running.stdout:
        output.append(line)
        if line.startswith(f"TASK [{task}]"):
            os.killpg(running.pid, signal.SIGKILL)
            break
    running.stdout.close()
    assert running.wait(timeout=60) == -signal.SIGKILL, "".join(output)[-4000:]


def test_a_gunicorn_whose_run_was_killed_before_its_restart_is_healed() -> None:
    before = processes()
    count = len(workers("gunicorn-hello_a.service")) + 1
    setting = ("--extra-vars", f"hello_a_workers={count}")
    play_until("quintet.django.gunicorn : service | Compare what runs with what is on disk", BARE, *setting)
    # Written, but not in use: what a lost handler would leave for ever.
    assert f"\nworkers = {count}\n" in HOST.run("cat", "/opt/quintet/gunicorn-hello_a/gunicorn.conf.py")
    assert processes() == before

    played = play_well(BARE, *setting)
    assert played.changed == 1, played.changed_tasks
    after = processes()
    assert after["hello_a"].isdisjoint(before["hello_a"])
    assert len(workers("gunicorn-hello_a.service")) == count
    assert all(after[name] == before[name] for name in SERVICES if name != "hello_a"), (before, after)


@pytest.mark.thorough
def test_a_daphne_whose_run_was_killed_before_its_restart_is_healed() -> None:
    before = processes()
    limit = random.randrange(1000, 60000)  # one that does not hold already
    setting = json.dumps({"echo_message_max_bytes": limit, "hello_a_workers": len(workers("gunicorn-hello_a.service"))})
    play_until(
        "quintet.django.daphne : service | Compare what runs with what is on disk", BARE, "--extra-vars", setting
    )
    assert f"--message-max-bytes {limit} " in HOST.run("cat", "/etc/systemd/system/daphne-echo-1.service")
    assert processes() == before

    with ECHO.websocket("/", max_size=None) as connection, asking(ECHO) as answers:
        assert echoes(connection, "x" * 100)
        played = play_well(BARE, "--extra-vars", setting)
        assert played.changed == 1, played.changed_tasks
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(timeout=20)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
    assert {answer.status for answer in answers} == {426}
    after = processes()
    assert after["echo"].isdisjoint(before["echo"])
    assert all(after[name] == before[name] for name in SERVICES if name != "echo"), (before, after)
    with ECHO.websocket("/", max_size=None) as connection:
        assert echoes(connection, "x" * (limit - 1))
        assert not echoes(connection, "x" * (limit + 1))


# ---- bad input ----------------------------------------------------------------------------------------------------


def play_role(directory: Path, entry: str, **variables: Any) -> Played:
    """Run a role, or ROLE/ENTRY, on the host with plain variables."""
    role, _, tasks_from = entry.partition("/")
    include = {"name": f"quintet.django.{role}", "tasks_from": tasks_from or "main"}
    task = {"name": "Include it", "ansible.builtin.include_role": include, "vars": variables}
    playbook = directory / "playbook.yml"
    playbook.write_text(json.dumps([{"hosts": "strangers", "gather_facts": False, "tasks": [task]}]))
    return play(str(playbook))


GUNICORN = {"gunicorn_app_name": "lonely", "gunicorn_directory": "/srv/hello"}
DAPHNE = {"daphne_app_name": "lonely", "daphne_directory": "/srv/echo"}
SITE = {"nginx_site_name": "lonely", "nginx_site_http_servers": [{"server": "127.0.0.1:9"}]}

BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "no application": (
        "gunicorn",
        GUNICORN,
        "missing required arguments: gunicorn_application",
    ),
    "no attribute": (
        "gunicorn",
        {**GUNICORN, "gunicorn_application": "hello"},
        "gunicorn_application: 'hello' does not name a WSGI callable. Write module:attribute",
    ),
    "no ASGI application": (
        "daphne",
        DAPHNE,
        "missing required arguments: daphne_application",
    ),
    "no domain": (
        "nginx/site",
        SITE,
        "nginx_site_domains: site 'lonely' has no host name, so no request could reach it. Give it at least one.",
    ),
    "a domain of another site": (
        "nginx/site",
        {**SITE, "nginx_site_domains": ["hello.test"]},
        "The host name 'hello.test' is claimed twice on 0.0.0.0:80, by quintet/sites/hello.conf and quintet/sites/lonely.conf.",
    ),
    "a line that Nginx refuses": (
        "nginx/site",
        {**SITE, "nginx_site_domains": ["lonely.test"], "nginx_site_extra": "foo bar;"},
        'unknown directive "foo" in quintet/sites/lonely.conf',
    ),
    "a short password": (
        "redis",
        {"redis_name": "chat", "redis_password": "short"},
        "redis_password: the password of instance 'chat' is shorter than 16 characters.",
    ),
    "a database of PostgreSQL's own": (
        "postgresql/database",
        {"postgresql_database_name": "postgres"},
        "'postgres' cannot be the name of an app's database or user.",
    ),
}


@pytest.mark.parametrize(("role", "variables", "words"), BAD.values(), ids=BAD)
def test_bad_variables_are_refused_before_anything_changes(
    tmp_path: Path, role: str, variables: dict[str, Any], words: str
) -> None:
    before, tree = processes(), live_tree()
    played = play_role(tmp_path, role, **variables)
    assert played.code != 0, played.output
    assert words in re.sub(r"\s+", " ", played.output), played.output
    assert played.changed == 0, played.changed_tasks
    assert (processes(), live_tree()) == (before, tree)
    assert (
        shell("ls -d /opt/quintet/*lonely* /etc/systemd/system/*lonely* 2>/dev/null; getent passwd lonely; true") == ""
    )
    assert HELLO.get("/").status == 200


def test_a_file_that_does_not_import_stops_nothing_and_the_next_run_puts_all_right(tmp_path: Path) -> None:
    before = processes()
    played = play_role(
        tmp_path,
        "gunicorn",
        gunicorn_app_name="hello_b",
        gunicorn_application="nowhere:application",
        gunicorn_directory="/srv/hello",
    )
    assert played.code != 0, played.output
    for words in (
        "gunicorn_application: 'nowhere:application' cannot be loaded from /srv/hello on quintet-roles:",
        "ModuleNotFoundError: No module named 'nowhere'",
        "what ran before still runs",
    ):
        assert words in played.output
    assert processes() == before
    assert "hello_b" in {HELLO.get("/").json["instance"] for _ in range(6)}

    play_well(BARE, "--extra-vars", f"hello_a_workers={len(workers('gunicorn-hello_a.service'))}")
    assert "hello:application" in HOST.run("cat", "/etc/systemd/system/gunicorn-hello_b.service")
    assert len(workers("gunicorn-hello_b.service")) == 1
    assert "hello_b" in {HELLO.get("/").json["instance"] for _ in range(6)}


def test_a_setting_that_gunicorn_refuses_changes_neither_the_configuration_nor_the_process(tmp_path: Path) -> None:
    def on_disk() -> str:
        return shell("sha256sum /opt/quintet/gunicorn-hello_b/gunicorn.conf.py /etc/systemd/system/gunicorn-hello_b.*")

    before, written = processes(), on_disk()
    played = play_role(
        tmp_path,
        "gunicorn",
        gunicorn_app_name="hello_b",
        gunicorn_application="hello:application",
        gunicorn_directory="/srv/hello",
        gunicorn_limit_request_line=-1,
    )
    assert played.code != 0, played.output
    assert "Invalid value for limit_request_line: -1" in played.text, played.output
    assert played.changed == 0, played.changed_tasks
    assert (processes(), on_disk()) == (before, written)
    assert "hello_b" in {HELLO.get("/").json["instance"] for _ in range(6)}


# ---- last, since it stops everything ------------------------------------------------------------------------------


def test_everything_comes_back_after_a_restart_of_the_host(chat: Site) -> None:
    generation = HOST.current("chat")
    subprocess.run(["docker", "restart", HOST.name], check=True, capture_output=True, timeout=120)

    def all_answer() -> bool:
        try:
            with ECHO.websocket("/") as connection:
                assert echoes(connection, "hello")
            instances = {HELLO.get("/").json["instance"] for _ in range(6)}
            health = chat.get("/healthz").json
        except (OSError, HTTPException, InvalidHandshake, ValueError):
            return False
        return instances == {"hello_a", "hello_b"} and (health["status"], health["generation"]) == ("ok", generation)

    wait_for("all apps answer after the restart of the host", all_answer)
    with chat.websocket("/ws/rooms/lobby/") as connection:
        receive(connection, "history")
    wait_for("the system is up", lambda: HOST.run("systemctl", "is-system-running", check=False).strip() == "running")
    assert HOST.run("systemctl", "--failed", "--no-legend", "--plain") == ""
    assert processes()
