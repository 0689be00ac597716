"""The role gunicorn's units and configuration, rendered for the corners."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rendering import FACTS, Role

PLAIN = {"app_name": "hello", "application": "hello:application", "directory": "/srv/hello"}


def gunicorn(**variables: Any) -> Role:
    return Role("gunicorn", **{f"gunicorn_{name}": value for name, value in {**PLAIN, **variables}.items()})


def of_app(**app: Any) -> Role:
    """Return the role as a loop over apps calls it."""
    app = {"name": "shop", "wsgi": "config.wsgi:application", **app}
    return Role("gunicorn", django_app=app, gunicorn_generation="11111111-22222222")


def settings(role: Role) -> dict[str, Any]:
    """Return what the configuration sets, run as Gunicorn runs it."""
    found: dict[str, Any] = {}
    exec(role.render("gunicorn.conf.py.j2"), found)
    return found


def problems(**variables: Any) -> str:
    return "\n".join(gunicorn(**variables).evaluate("__gunicorn_problems"))


def test_takes_plain_variables() -> None:
    service = gunicorn(user="web", group="www", memory_max="512M").render("gunicorn.service.j2").splitlines()
    for line in (
        "User=web",
        "Group=www",
        "WorkingDirectory=/srv/hello",
        "MemoryMax=512M",
        "ProtectSystem=strict",
        "WantedBy=multi-user.target",
        "Requires=gunicorn-hello.socket",
    ):
        assert line in service


def test_takes_the_app_of_a_loop() -> None:
    app = of_app(user="", environment={"A": "1"}, sandbox={"ProcSubset": ""}, gunicorn={"threads": 3, "tasks_max": ""})
    service = app.render("gunicorn.service.j2")
    assert "User=shop\nGroup=shop\nWorkingDirectory=/srv/shop/generations/11111111-22222222/src\n" in service
    assert 'Environment="A=1"' in service
    assert "ProcSubset" not in service
    assert "TasksMax" not in service
    assert settings(app)["threads"] == 3
    assert of_app(user="vendor").evaluate("gunicorn_group") == "vendor"


def test_limits_are_shares_of_the_host_and_variables() -> None:
    service = of_app().render("gunicorn.service.j2").splitlines()
    assert {"MemoryMax=50%", "TasksMax=512", "OOMScoreAdjust=300", "OOMPolicy=continue"} <= set(service)
    changed = of_app(gunicorn={"memory_max": "", "oom_score_adjust": 10}).render("gunicorn.service.j2")
    assert "MemoryMax" not in changed
    assert "OOMScoreAdjust=10\n" in changed


def test_refuses_limits_that_systemd_could_not_read() -> None:
    assert "gunicorn_memory_max: 'much' is no amount of memory." in problems(memory_max="much")
    # These, systemd drops without a word to the role, and starts the service without a limit.
    for nothing in ("0", "0%", "0.0G", "101%", "much"):
        assert f"gunicorn_memory_max: '{nothing}' is no amount of memory." in problems(memory_max=nothing)
    for none in (0, "lots", "-1"):
        assert f"gunicorn_tasks_max: '{none}' is no number of tasks." in problems(tasks_max=none)
    for good in ("", "1", "512M", "1.5G", "40%", "100%", "0.5%", "infinity"):
        assert problems(memory_max=good, tasks_max="infinity" if good else "") == ""
    assert "gunicorn_oom_score_adjust: '2000' is no rank" in problems(oom_score_adjust=2000)


def test_units_of_a_generation_name_it_and_install_nothing() -> None:
    app = of_app()
    socket, service = app.render("gunicorn.socket.j2"), app.render("gunicorn.service.j2")
    assert "ListenStream=/run/quintet/shop/11111111-22222222/gunicorn.sock" in socket
    assert "Requires=gunicorn-shop@11111111-22222222.socket" in service
    assert "/units/gunicorn.conf.py config.wsgi:application" in service
    for text in (socket, service):
        assert "[Install]" not in text
        assert "current" not in text
        assert ".loaded" not in text


@pytest.mark.parametrize(
    ("cores", "mebibytes", "workers", "threads"),
    [(2, 4096, 2, 8), (8, 1000, 1, 8), (8, 2048, 4, 8), (1, 300, 1, 4), (1, 100, 1, 2), (64, 65536, 64, 8)],
)
def test_workers_and_threads_follow_cores_and_memory(cores: int, mebibytes: int, workers: int, threads: int) -> None:
    role = gunicorn()
    role.variables["ansible_facts"] = {**FACTS, "processor_nproc": cores, "memtotal_mb": mebibytes}
    assert (settings(role)["workers"], settings(role)["threads"]) == (workers, threads)


def test_more_workers_than_memory_for_them_have_fewer_threads() -> None:
    role = gunicorn(workers=4)
    role.variables["ansible_facts"] = {**FACTS, "memtotal_mb": 1024}
    assert settings(role)["threads"] == 4


def test_gunicorn_knows_every_setting() -> None:
    config = pytest.importorskip("gunicorn.config")
    chosen = settings(gunicorn(access_log=True, preload=True))
    own = {"os", "systemd", "__builtins__", "_notify_socket", "_reserving_worker"}
    assert set(chosen) - own - set(config.Config().settings) == set()
    assert (chosen["accesslog"], chosen["preload_app"]) == ("-", True)


def test_health_has_a_thread_when_all_others_are_taken() -> None:
    gthread = pytest.importorskip("gunicorn.workers.gthread")
    worker = settings(gunicorn(reserved_paths=["/healthz", "/up"]))["worker_class"]()
    assert issubclass(worker, gthread.ThreadWorker)
    threads = worker.get_thread_pool(SimpleNamespace(cfg=SimpleNamespace(threads=2)))
    over, lines = threading.Event(), []

    def work(connection: SimpleNamespace) -> str:
        line: str = connection.sock.recv(100).split(b"\r\n")[0].decode()
        if "/slow" in line:
            assert over.wait(20)
        lines.append(line)
        return line

    def ask(path: str) -> Future[str]:
        client, server = socket.socketpair()
        clients.append(client)
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        future: Future[str] = threads.submit(work, SimpleNamespace(sock=server))
        return future

    clients: list[socket.socket] = []
    slow = [ask("/slow") for _ in range(2)]
    waiting = [ask(path) for path in ("/", "/healthzy", "/x?/up")]
    assert ask("/healthz").result(timeout=20) == "GET /healthz HTTP/1.1"
    assert ask("/up?from=probe").result(timeout=20) == "GET /up?from=probe HTTP/1.1"
    assert not any(future.done() for future in (*slow, *waiting))
    over.set()
    threads.shutdown()
    assert len(lines) == 7


def test_nothing_is_reserved_where_nothing_is_named_or_no_thread_is_there() -> None:
    assert settings(gunicorn(reserved_paths=[]))["worker_class"] == "gthread"
    assert settings(gunicorn(worker_class="sync"))["worker_class"] == "sync"


@pytest.mark.parametrize("settings", [{}, {"worker_class": "sync", "access_log": True, "log_level": "debug"}])
def test_gunicorn_accepts_the_configuration(tmp_path: Path, settings: dict[str, Any]) -> None:
    pytest.importorskip("gunicorn")
    (tmp_path / "gunicorn.conf.py").write_text(gunicorn(**settings).render("gunicorn.conf.py.j2"))
    command = [sys.executable, "-m", "gunicorn", "--check-config", "--config", "gunicorn.conf.py"]
    done = subprocess.run([*command, "wsgiref.simple_server:demo_app"], cwd=tmp_path, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_secrets_come_by_files_that_systemd_reads() -> None:
    service = gunicorn(credentials={"B": "/etc/x/b", "A": "/etc/x/a"}, environment_files=["-/etc/x/env"])
    lines = service.render("gunicorn.service.j2").splitlines()
    assert [line for line in lines if "/etc/x" in line and "sha256sum" not in line] == [
        "EnvironmentFile=-/etc/x/env",
        "LoadCredential=A:/etc/x/a",
        "LoadCredential=B:/etc/x/b",
    ]
    # A changed file restarts the service; the dash is systemd's word for "may be missing", not part of the path.
    assert service.evaluate("__gunicorn_restart_on") == [
        "/opt/quintet/gunicorn-hello/gunicorn.conf.py",
        "/etc/x/env",
        "/etc/x/b",
        "/etc/x/a",
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"environment": {"A": "2"}},
        {"version": "27.0.0"},
        {"requirements": ["flask"]},
        {"application_version": "abc"},
        {"sandbox": {"ProcSubset": ""}},
        {"restart_on": ["/srv/hello/hello.py"]},
        {"application": "hello:other"},
    ],
)
def test_each_change_restarts(change: dict[str, Any]) -> None:
    assert gunicorn(**change).evaluate("__gunicorn_digest") != gunicorn().evaluate("__gunicorn_digest")


def test_a_setting_of_the_socket_restarts_the_socket_only() -> None:
    other = gunicorn(backlog=100)
    assert other.evaluate("__gunicorn_socket_digest") != gunicorn().evaluate("__gunicorn_socket_digest")
    assert other.evaluate("__gunicorn_digest") == gunicorn().evaluate("__gunicorn_digest")


def test_listens_on_an_address_too() -> None:
    socket = gunicorn(socket="127.0.0.1:8000").render("gunicorn.socket.j2")
    assert "ListenStream=127.0.0.1:8000" in socket
    assert "SocketGroup" not in socket


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"app_name": "Hello"}, "gunicorn_app_name: 'Hello'"),
        ({"app_name": "x" * 25}, "gunicorn_app_name"),
        ({"application": "hello"}, "gunicorn_application: 'hello'"),
        ({"application": "hello:app; rm"}, "gunicorn_application"),
        ({"generation": "a b"}, "gunicorn_generation: 'a b'"),
        ({"socket": "gunicorn.sock"}, "gunicorn_socket: 'gunicorn.sock'"),
        ({"socket": "/run/" + "x" * 103}, "gunicorn_socket"),
        ({"workers": 0}, "gunicorn_workers: 0"),
        ({"threads": 0}, "gunicorn_threads: 0"),
        ({"reserved_paths": ["healthz"]}, "gunicorn_reserved_paths: one of 'healthz'"),
        ({"credentials": {"A/B": "/x"}}, "gunicorn_credentials"),
        ({"credentials": {"A": "x"}}, "'x' cannot stand in a unit"),
        ({"directory": "/srv/a b"}, "'/srv/a b' cannot stand in a unit"),
        ({"writable_paths": ["/srv/%h"]}, "'/srv/%h' cannot stand in a unit"),
    ],
)
def test_says_what_is_wrong(variables: dict[str, Any], said: str) -> None:
    assert said in problems(**variables)


def test_finds_nothing_wrong_with_what_is_right() -> None:
    assert problems() == ""
    assert of_app(gunicorn={"threads": 4}).evaluate("__gunicorn_problems") == []


def test_names_a_setting_that_does_not_exist() -> None:
    (problem,) = of_app(gunicorn={"thread": 4}).evaluate("__gunicorn_problems")
    assert problem.startswith("django_app.gunicorn: 'thread' is no setting of Gunicorn. Known are: access_log, ")


def test_who_asks_for_it_stops_before_it() -> None:
    assert "\nBefore=" not in gunicorn().render("gunicorn.service.j2")
    text = gunicorn(before=["nginx.service", "haproxy.service"]).render("gunicorn.service.j2")
    assert "\nBefore=nginx.service haproxy.service\n" in text.partition("[Service]")[0]
