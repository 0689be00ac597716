"""The whole site by site.yml, on both systems side by side (Molecule scenario default)."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hosts import ROOT, Host, Site, play, play_well, receive, wait_for
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection

NAMES = ["quintet-bookworm", "quintet-trixie"]
APP = "chat"
DOMAIN = "chat.test"
ROOM = "/ws/rooms/lobby/"

SOURCE = Path(os.environ.get("MOLECULE_EPHEMERAL_DIRECTORY", "/nonexistent")) / "sample_app"


@pytest.fixture(params=NAMES)
def host(request: pytest.FixtureRequest) -> Host:
    return Host(request.param)


@pytest.fixture
def site(host: Host) -> Site:
    return Site(host, DOMAIN)


@pytest.fixture(scope="module")
def curl() -> None:
    for name in NAMES:
        Host(name).run("sh", "-c", "command -v curl || apt-get install -qq -y --no-install-recommends curl")


# ---- a request's way ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("curl")
class TestCurl:
    """From the host itself, with nothing but curl."""

    def curl(self, host: Host, *arguments: str) -> str:
        return host.run("curl", "--silent", "--show-error", "--include", "--max-time", "10", *arguments, check=False)

    def test_the_page(self, host: Host) -> None:
        answer = self.curl(host, "--header", f"Host: {DOMAIN}", "http://127.0.0.1/")
        assert answer.startswith("HTTP/1.1 200")
        assert "/rooms/lobby/" in answer

    def test_a_websocket_handshake(self, host: Host) -> None:
        arguments = ["--http1.1", "--max-time", "3", "http://127.0.0.1/ws/health/"]
        for header in (
            f"Host: {DOMAIN}",
            f"Origin: http://{DOMAIN}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ):
            arguments += ["--header", header]
        assert self.curl(host, *arguments).startswith("HTTP/1.1 101")
        foreign = [argument.replace(f"Origin: http://{DOMAIN}", "Origin: http://evil.test") for argument in arguments]
        assert self.curl(host, *foreign).startswith("HTTP/1.1 403")

    def test_an_unknown_host_is_closed(self, host: Host) -> None:
        answer = self.curl(host, "--header", "Host: unknown.test", "http://127.0.0.1/")
        assert "HTTP/" not in answer
        assert re.search("Empty reply from server|Connection reset by peer", answer), answer


def test_health_names_all_parts(site: Site, host: Host) -> None:
    health = site.get("/healthz").json
    assert health["status"] == "ok"
    assert health["database"] == "ok"
    assert health["channel_layer"] == "ok"
    assert health["generation"] == host.current(APP)


def test_static_files_come_from_disk_compressed_and_for_long(site: Site) -> None:
    page = site.get("/").body
    path = re.search(r"/static/chat/[^\"]+\.[0-9a-f]{12}\.css", page)
    assert path, page
    answer = site.get(path.group(), headers={"Accept-Encoding": "gzip"})
    assert answer.status == 200
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.headers["x-content-type-options"] == "nosniff"
    plain = site.get(re.sub(r"\.[0-9a-f]{12}\.", ".", path.group()))
    assert plain.status == 200
    assert "immutable" not in plain.headers["cache-control"]


def test_an_alias_is_redirected_with_its_path(host: Host) -> None:
    answer = Site(host, "www.chat.test").get("/rooms/lobby/?page=2")
    assert answer.status == 308
    assert answer.headers["location"] == f"http://{DOMAIN}/rooms/lobby/?page=2"


def log_entries(host: Host, uri: str) -> list[dict[str, Any]]:
    """Return the last entries of Nginx's access log for a path with its query."""
    lines = host.run("tail", "--lines=200", "/var/log/nginx/access.log").splitlines()
    return [entry for entry in map(json.loads, lines) if entry["uri"] == uri]


def test_the_access_log_tells_how_long_the_app_and_a_websocket_took(site: Site) -> None:
    mark = uuid.uuid4()
    with site.websocket(f"/ws/health/?{mark}") as connection:
        assert process_of(connection)
        with pytest.raises(TimeoutError):
            connection.recv(timeout=1)
    site.get(f"/healthz?{mark}", headers={"X-Forwarded-For": "1.2.3.4"})
    found = [f"/healthz?{mark}", f"/ws/health/?{mark}"]
    wait_for("Nginx to flush its log", lambda: all(log_entries(site.host, uri) for uri in found))
    ((request,), (websocket,)) = (log_entries(site.host, uri) for uri in found)
    assert float(request["upstream_response_time"]) >= 0
    assert request["client"] not in ("", "127.0.0.1", "1.2.3.4")
    assert (websocket["status"], websocket["upgrade"]) == (101, "websocket")
    assert float(websocket["request_time"]) >= 1


# ---- WebSockets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", ["http://evil.test", None])
def test_a_foreign_or_missing_origin_is_refused(site: Site, origin: str | None) -> None:
    with pytest.raises(InvalidStatus) as refused:
        site.websocket(ROOM, origin=origin)
    assert refused.value.response.status_code == 403


def process_of(connection: ClientConnection) -> int:
    connection.send(json.dumps({"type": "ping"}))
    return int(receive(connection, "pong")["process"])


def test_the_health_socket_answers_with_generation_and_process(site: Site, host: Host) -> None:
    with site.websocket("/ws/health/") as connection:
        connection.send(json.dumps({"type": "ping"}))
        answer = receive(connection, "pong")
    assert answer["generation"] == host.current(APP)
    assert answer["process"] in host.processes("daphne-chat-*")


def connect_to_each_process(site: Site) -> dict[ClientConnection, int]:
    """Enter the room again and again until every process has somebody; returns the connections with their processes.

    Many at the same time: whichever process is awake first takes a connection, so that one alone may serve all who come singly.
    """
    people: dict[ClientConnection, int] = {}

    def enter(_: int) -> tuple[ClientConnection, int]:
        person = site.websocket(ROOM)
        receive(person, "history")
        return person, process_of(person)

    def each_has_somebody() -> bool:
        with ThreadPoolExecutor(10) as threads:
            people.update(threads.map(enter, range(20)))
        return set(people.values()) == site.host.processes("daphne-chat-*")

    wait_for("a connection to each process", each_has_somebody)
    return people


def test_a_message_reaches_somebody_on_another_process(site: Site) -> None:
    people = connect_to_each_process(site)
    assert len(set(people.values())) == 2
    sender, *others = people
    listener = next(person for person in others if people[person] != people[sender])
    ref, text = str(uuid.uuid4()), f"hello from {uuid.uuid4()}"
    sender.send(json.dumps({"type": "message", "ref": ref, "text": text}))
    acknowledged = receive(sender, "ack")
    message = receive(listener, "message")
    assert acknowledged["ref"] == ref
    assert (message["id"], message["text"]) == (acknowledged["id"], text)
    for person in people:
        person.close()


def test_a_post_by_plain_http_reaches_a_websocket(site: Site) -> None:
    site.get("/rooms/lobby/")
    text = f"posted {uuid.uuid4()}"
    with site.websocket(ROOM) as connection:
        receive(connection, "history")
        answer = site.request(
            "POST",
            "/rooms/lobby/messages",
            body=f"text={text.replace(' ', '+')}",
            headers={
                "Content-Type": "application/x-www-form-urlencoded",
                "X-CSRFToken": site.cookies["csrftoken"],
                "Origin": f"http://{DOMAIN}",
                "Referer": f"http://{DOMAIN}/rooms/lobby/",
            },
        )
        assert answer.status in (201, 302, 303), answer.body
        assert receive(connection, "message")["text"] == text


def test_a_resent_message_is_stored_once_and_history_has_it_once(site: Site) -> None:
    site.get("/rooms/lobby/")
    message = json.dumps({"type": "message", "ref": str(uuid.uuid4()), "text": f"once {uuid.uuid4()}"})
    with site.websocket(ROOM) as connection:
        connection.send(message)
        first = receive(connection, "ack")
    with site.websocket(ROOM) as connection:
        history = receive(connection, "history")["messages"]
        connection.send(message)
        assert receive(connection, "ack")["id"] == first["id"]
    with site.websocket(ROOM) as connection:
        history = receive(connection, "history")["messages"]
    assert [entry["id"] for entry in history].count(first["id"]) == 1
    assert [entry["text"] for entry in history].count(json.loads(message)["text"]) == 1


def test_bad_input_gets_an_error_and_the_socket_lives(site: Site) -> None:
    with site.websocket(ROOM) as connection:
        receive(connection, "history")
        for bad in ("no json", '{"type": "nonsense"}', '{"type": "message", "text": "no ref"}'):
            connection.send(bad)
            assert receive(connection, "error")["message"]
        connection.send(json.dumps({"type": "message", "ref": str(uuid.uuid4()), "text": "still here"}))
        assert receive(connection, "ack")


def test_five_hundred_handshakes_at_once_all_succeed(site: Site) -> None:
    request = (
        f"GET /ws/health/ HTTP/1.1\r\nHost: {DOMAIN}\r\nOrigin: http://{DOMAIN}\r\nConnection: Upgrade\r\n"
        "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()
    address = (site.host.address, 80)
    connections = [socket.create_connection(address, timeout=60) for _ in range(500)]
    for connection in connections:
        connection.sendall(request)
    statuses = [int(connection.recv(4096).split()[1]) for connection in connections]
    for connection in connections:
        connection.close()
    assert statuses.count(101) == 500, sorted(set(statuses))


def test_the_kernel_holds_thousands_of_handshakes(host: Host) -> None:
    listening = host.run("ss", "--listening", "--unix", "--no-header")
    queues = {
        line.split()[4].rsplit("/", 1)[1]: int(line.split()[3])
        for line in listening.splitlines()
        if f"/run/quintet/{APP}/" in line
    }
    allowed = int(host.run("cat", "/proc/sys/net/core/somaxconn"))
    assert queues == {"gunicorn.sock": min(4096, allowed), "daphne.sock": min(4096, allowed)}


# ---- what the app may and may not ---------------------------------------------------------------------------------


def test_the_apps_user_can_write_nowhere_but_in_shared(host: Host) -> None:
    home = f"/srv/{APP}"
    generation = f"{home}/current"
    for path in (
        f"{generation}/src/x",
        f"{generation}/venv/x",
        f"{generation}/static/x",
        f"{generation}/units/x",
        f"{home}/x",
        f"{home}/generations/x",
        f"{home}/shared/x",
        "/etc/systemd/system/x",
        f"/run/quintet/{APP}/x",
        "/etc/nginx/x",
    ):
        assert host.fails("touch", path, user=APP), path
    assert host.fails("ln", "-sfn", "/tmp", f"{home}/current", user=APP)
    assert not host.fails("touch", f"{home}/shared/media/x", user=APP)
    host.run("rm", f"{home}/shared/media/x")


def test_nobody_but_root_can_read_what_is_secret(host: Host) -> None:
    listed = host.run("find", f"/etc/quintet/{APP}", "/var/lib/quintet", "-type", "f").split()
    assert any(path.endswith("credentials/SECRET_KEY") for path in listed)
    for path in [*listed, f"/srv/{APP}/current/generation.json"]:
        for user in (APP, "www-data", "nobody"):
            assert host.fails("cat", path, user=user), f"{user} reads {path}"
    for user in ("www-data", "nobody"):
        assert host.fails("ls", f"/srv/{APP}/current/src/", user=user)


def test_a_secret_is_in_no_process_list_unit_or_journal(host: Host) -> None:
    secrets = json.loads(host.run("cat", f"/etc/quintet/{APP}/secrets.json"))
    assert set(secrets) == {"SECRET_KEY", "CHANNEL_LAYER_PASSWORD"}
    for shown in (
        host.run("sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"),
        host.run("journalctl", "--no-pager", "--output=cat"),
        host.run(
            "sh", "-c", f"cat /srv/{APP}/current/units/* /etc/systemd/system/*.service /etc/redis/* 2>/dev/null || true"
        ),
    ):
        for name, value in secrets.items():
            assert value not in shown, name


def test_sockets_are_for_the_web_server_alone(host: Host) -> None:
    for name in ("gunicorn.sock", "daphne.sock"):
        path = f"/srv/{APP}/current/run/{name}"
        assert host.run("stat", "--dereference", "--format=%U:%G %a", path).strip() == "root:www-data 660"
        for user in (APP, "nobody"):
            assert host.fails("test", "-w", path, user=user), f"{user} reaches {name}"
        assert not host.fails("test", "-w", path, user="www-data")


def test_no_service_but_nginx_listens_on_the_network(host: Host) -> None:
    listening = host.run("ss", "--listening", "--tcp", "--numeric", "--processes", "--no-header").strip().splitlines()
    assert listening
    assert all("nginx" in line for line in listening), listening


def test_the_database_is_for_the_apps_user_alone(host: Host) -> None:
    assert host.run("psql", "--dbname=chat", "--tuples-only", "--command=select current_user", user=APP).strip() == APP
    for user in ("www-data", "nobody"):
        assert host.fails("psql", "--dbname=chat", "--username=chat", "--command=select 1", user=user)


def test_an_unlike_app_beside_it_has_what_it_asked_for_and_no_more(host: Host) -> None:
    for domain in ("plain.test", "plain2.test"):
        answer = Site(host, domain).get("/").json
        assert answer["host"] == domain
        assert answer["generation"] == host.current("plain")
    assert {"SECRET_KEY", "DJANGO_SETTINGS_MODULE", "ALLOWED_HOSTS"} <= set(answer["names"])
    assert not {"DATABASE_URL", "CHANNEL_LAYER_URL", "MEDIA_ROOT", "CHANNEL_LAYER_PASSWORD"} & set(answer["names"])
    units = host.run("systemctl", "list-units", "--plain", "--no-legend", "*plain*")
    assert "gunicorn-plain@" in units
    assert "daphne-plain" not in units
    assert "redis-plain" not in units
    databases = host.run(
        "psql", "--dbname=postgres", "--tuples-only", "--command=select datname from pg_database", user="postgres"
    ).split()
    assert "chat" in databases
    assert "plain" not in databases
    # One app's user has nothing of the other's.
    for path in (
        f"/srv/{APP}/current/src/manage.py",
        f"/etc/quintet/{APP}/secrets.json",
        f"/srv/{APP}/current/venv/pyvenv.cfg",
    ):
        assert host.fails("cat", path, user="plain_user"), path
    for path in (f"/srv/{APP}/current/run/gunicorn.sock", "/run/redis-chat/redis.sock"):
        assert host.fails("test", "-w", path, user="plain_user"), path
    assert host.fails("psql", "--dbname=chat", "--command=select 1", user="plain_user")


# ---- the host command ---------------------------------------------------------------------------------------------


def test_manage_has_the_apps_environment_user_and_sandbox(host: Host) -> None:
    script = (
        "import os; from django.conf import settings as s; "
        "print(os.environ['QUINTET_GENERATION'], os.getuid(), len(s.SECRET_KEY), os.getcwd())"
    )
    generation, user, key, directory = host.run(
        "quintet", "manage", APP, "--", "shell", "--verbosity=0", "--command", script
    ).split()[-4:]
    assert generation == host.current(APP)
    assert user == host.run("id", "--user", APP).strip()
    assert int(key) >= 50
    assert directory == f"/srv/{APP}/generations/{generation}/src"
    assert host.fails("quintet", "manage", APP, "--", "no_such_command")
    # Written by root it would work; the sandbox says that the file system is read-only, not that the user may not.
    script = (
        "import errno, os\ntry: os.mkdir('/var/tmp/x/y')\nexcept OSError as error: print(errno.errorcode[error.errno])"
    )
    host.run("install", "--directory", f"--owner={APP}", "/var/tmp/x")
    assert host.run("quintet", "manage", APP, "--", "shell", "--verbosity=0", "--command", script).split()[-1] in (
        "EROFS",
        "ENOENT",
    )


def test_the_servers_run_as_the_apps_user_in_a_sandbox_with_the_same_environment(host: Host) -> None:
    user = host.run("id", "--user", APP).strip()
    seen = set()
    processes = host.processes(f"gunicorn-{APP}@*") | host.processes(f"daphne-{APP}-*")
    assert len(processes) == 3
    for process in processes:
        status = dict(
            line.split(":\t", 1) for line in host.run("cat", f"/proc/{process}/status").splitlines() if ":\t" in line
        )
        assert set(status["Uid"].split()) == {user}
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"
        assert int(status["CapBnd"], 16) == 0
        environment = host.run("sh", "-c", f"tr '\\0' '\\n' < /proc/{process}/environ").splitlines()
        names = (
            "DJANGO_SETTINGS_MODULE=",
            "DATABASE_URL=",
            "CHANNEL_LAYER_URL=",
            "LOG_LEVEL=",
            "QUINTET_GENERATION=",
            "STATIC_ROOT=",
        )
        seen.add(tuple(sorted(line for line in environment if line.startswith(names))))
        assert not [line for line in environment if line.startswith("SECRET_KEY=")]
    assert len(seen) == 1
    assert len(seen.pop()) == 6


def test_probe_and_status_agree_that_all_is_well(host: Host) -> None:
    host.run("quintet", "probe", APP)
    assert host.quintet("status", APP)["apps"][0]["healthy"] is True


# ---- changes ------------------------------------------------------------------------------------------------------


def test_both_hosts_share_the_release_and_have_their_own_generations() -> None:
    generations = [Host(name).current(APP) for name in NAMES]
    assert len({generation.split("-")[0] for generation in generations}) == 1
    assert len({generation.split("-")[1] for generation in generations}) == 2


def test_generated_secrets_are_the_same_on_all_hosts() -> None:
    kept = [Host(name).run("cat", f"/etc/quintet/{APP}/secrets.json") for name in NAMES]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("tag", ["postgresql", "django_app", "redis", "nginx"])
def test_each_roles_tag_works_alone(tag: str) -> None:
    played = play_well("site.yml", "--tags", tag, "--limit", "quintet-trixie")
    assert played.changed == 0, played.changed_tasks
    assert f"quintet.django.{tag} : " in played.output


IDLE_SECONDS = 75


@pytest.fixture(scope="module", autouse=True)
def idle_sockets() -> list[tuple[float, ClientConnection]]:
    """One WebSocket on each host, opened before all tests, on which nothing is sent but Daphne's pings and their answers."""
    return [(time.monotonic(), Site(Host(name), DOMAIN).websocket("/ws/health/", ping_interval=None)) for name in NAMES]


def test_an_idle_socket_lives_for_75_seconds(idle_sockets: list[tuple[float, ClientConnection]]) -> None:
    for opened, connection in idle_sockets:
        with pytest.raises(TimeoutError):
            connection.recv(timeout=max(0.1, opened + IDLE_SECONDS - time.monotonic()))
        assert process_of(connection)
        connection.close()


def test_a_service_that_does_not_run_is_the_one_thing_that_check_mode_reports_and_is_repaired() -> None:
    hosts = [Host(name) for name in NAMES]
    units = [f"daphne-chat-1@{host.current(APP)}.service" for host in hosts]
    for host, unit in zip(hosts, units, strict=True):
        host.run("systemctl", "stop", unit)
    # On hosts that are as they should be but for it.
    for playbook, *arguments in (["site.yml", "--check"], ["playbooks/deploy.yml"]):
        played = play_well(playbook, *arguments)
        assert [played.count(name, "changed") for name in NAMES] == [1, 1], played.changed_tasks
    for host, unit in zip(hosts, units, strict=True):
        assert host.run("systemctl", "is-active", unit).strip() == "active"


def serves(host: Host, generation: str) -> bool:
    """Say whether HTTP and WebSocket through Nginx both reach this generation."""
    site = Site(host, DOMAIN)
    with site.websocket("/ws/health/") as connection:
        connection.send(json.dumps({"type": "ping"}))
        named = receive(connection, "pong")["generation"]
    return bool(site.get("/healthz").json["generation"] == named == generation)


def test_a_change_of_one_app_reaches_both_hosts_and_leaves_the_other_app_alone() -> None:
    """What else comes of changes, and the ways back, is for the scenarios deploy and faults to show."""
    hosts = [Host(name) for name in NAMES]
    first = [host.current(APP) for host in hosts]
    plain = [host.processes("gunicorn-plain@*") for host in hosts]
    environments = [host.run("readlink", f"/srv/{APP}/current/venv") for host in hosts]
    play_well("playbooks/deploy.yml", "--extra-vars", f"chat_log_level=WARNING app={APP}")
    second = [host.current(APP) for host in hosts]
    assert all(new.split("-")[0] != old.split("-")[0] for new, old in zip(second, first, strict=True))
    assert [serves(host, generation) for host, generation in zip(hosts, second, strict=True)] == [True, True]
    assert [host.run("readlink", f"/srv/{APP}/current/venv") for host in hosts] == environments
    assert [host.processes("gunicorn-plain@*") for host in hosts] == plain
    assert all(plain)


# ---- bad input ----------------------------------------------------------------------------------------------------


def state_of(host: Host) -> tuple[str, set[int], str]:
    """Return what serves: the generation, its processes, and Nginx's tree."""
    current = host.current(APP)
    processes = host.processes(f"gunicorn-{APP}@{current}*") | host.processes(f"daphne-{APP}-*@{current}*")
    return current, processes, host.run("readlink", "/etc/nginx/quintet")


def play_badly(change: dict[str, object], second: Mapping[str, object] | None = None) -> str:
    """Run site.yml with one thing wrong; it must fail, and what serves must stay as it was."""
    host = Host("quintet-trixie")
    before = state_of(host)
    app: dict[str, object] = {
        "name": APP,
        "domains": [DOMAIN],
        "source": {"directory": str(SOURCE)},
        "asgi": "config.asgi:application",
        **change,
    }
    apps = [app, *([second] if second else [])]
    played = play("site.yml", "--limit", host.name, "--extra-vars", json.dumps({"django_apps": apps}))
    assert played.code != 0, played.output[-3000:]
    assert state_of(host) == before
    assert Site(host, DOMAIN).get("/healthz").json["status"] == "ok"
    return played.text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"nmae": "x"}, "django_apps[0].nmae: there is no such setting. Did you mean 'name'?"),
        ({"name": "Chat Room"}, "django_apps[0].name: 'Chat Room' can't name an app."),
        ({"name": "postgres"}, "django_apps[0].name: 'postgres' is a user that the system or one of its packages has."),
        (
            {"source": {"directory": "/no/such/place"}},
            "source.directory: /no/such/place is no directory on the controller.",
        ),
        ({"name": "_apt_x"}, "can't name an app"),
    ],
    ids=["unknown key", "impossible name", "system user", "missing source", "odd name"],
)
def test_bad_settings_are_refused_with_their_place(change: dict[str, object], words: str) -> None:
    assert words in play_badly(change)


def test_a_missing_name_is_refused() -> None:
    assert "django_apps[1]: missing required arguments: name." in play_badly(
        {}, second={"source": {"directory": str(SOURCE)}}
    )


def test_two_apps_cannot_have_one_domain() -> None:
    other = {"name": "shop", "domains": [DOMAIN], "source": {"directory": str(SOURCE)}}
    assert f"django_apps[1].domains: '{DOMAIN}' is already a domain of app 'chat'." in play_badly({}, second=other)


def test_a_user_that_somebody_else_made_is_not_taken_over() -> None:
    host = Host("quintet-trixie")
    host.run("useradd", "--system", "visitor")
    other = {"name": "visitor", "domains": ["visitor.test"], "source": {"directory": str(SOURCE)}}
    output = play_badly({}, second=other)
    assert "the user 'visitor' is on quintet-trixie already" in output
    assert host.fails("test", "-e", "/srv/visitor")
    roles = host.run(
        "psql", "--dbname=postgres", "--tuples-only", "--command=select rolname from pg_roles", user="postgres"
    ).split()
    assert "visitor" not in roles
    host.run("userdel", "visitor")


def test_a_wsgi_module_that_does_not_import_stops_the_build() -> None:
    output = play_badly({"wsgi": "config.nowhere:application"})
    assert "wsgi: 'config.nowhere:application' does not import." in output
    assert "ModuleNotFoundError: No module named 'config.nowhere'" in output


@pytest.mark.thorough
def test_requirements_that_do_not_resolve_stop_the_build() -> None:
    lock = (ROOT / "sample_app/requirements.txt").read_text()
    broken = SOURCE / "broken.txt"
    broken.write_text(re.sub(r"(?m)^asgiref==\S+", "asgiref==0.0.0.1", lock))
    try:
        output = play_badly({"requirements": "broken.txt"})
    finally:
        broken.unlink()
    assert "asgiref==0.0.0.1" in output
    assert "Nothing that serves was changed." in output


@pytest.fixture
def gentoo() -> Iterator[None]:
    """The trixie host, looking like another system until the test is over."""
    host = Host("quintet-trixie")
    host.run(
        "sh",
        "-c",
        "rm /etc/os-release && sed 's/Debian/Gentoo/g; s/^ID=.*/ID=gentoo/' /usr/lib/os-release > /etc/os-release",
    )
    host.run("mv", "/etc/debian_version", "/etc/gentoo-release")
    yield
    host.run("ln", "--symbolic", "--force", "../usr/lib/os-release", "/etc/os-release")
    host.run("mv", "/etc/gentoo-release", "/etc/debian_version")


@pytest.mark.usefixtures("gentoo")
def test_an_unsupported_system_is_refused() -> None:
    output = play_badly({})
    assert "quintet-trixie" in output
    assert "Gentoo" in output
    assert "Debian 12" in output


# ---- the end of it ------------------------------------------------------------------------------------------------


def test_a_reboot_brings_everything_back_within_a_minute() -> None:
    before = {name: Host(name).current(APP) for name in NAMES}
    subprocess.run(["docker", "restart", *NAMES], check=True, capture_output=True)

    def answers(name: str) -> bool:
        try:
            health = Site(Host(name), DOMAIN).get("/healthz")
            if health.status != 200 or health.json["generation"] != before[name]:
                return False
            with Site(Host(name), DOMAIN).websocket("/ws/health/") as connection:
                return process_of(connection) > 0
        except (OSError, InvalidStatus, ValueError):
            return False

    start = time.monotonic()
    for name in NAMES:
        wait_for(f"{name} after its reboot", partial(answers, name), 60 - (time.monotonic() - start))
    for name in NAMES:
        assert all(app["healthy"] for app in Host(name).quintet("status")["apps"])
        assert Host(name).run("systemctl", "--failed", "--no-legend", "--plain").strip() == ""
        assert Site(Host(name), "plain.test").get("/").status == 200
