"""The role daphne's units, rendered for the corners."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from typing import Any

import pytest
from rendering import FACTS, Role

PLAIN = {"app_name": "echo", "application": "echo:application", "directory": "/srv/echo"}


def daphne(**variables: Any) -> Role:
    return Role("daphne", **{f"daphne_{name}": value for name, value in {**PLAIN, **variables}.items()})


def of_app(**app: Any) -> Role:
    """Return the role as a loop over apps calls it."""
    app = {"name": "shop", "asgi": "config.asgi:application", **app}
    return Role("daphne", django_app=app, daphne_generation="11111111-22222222")


def command(role: Role) -> list[str]:
    match = re.search(r"^ExecStart=((?:.*\\\n)*.*)$", role.render("daphne.service.j2"), re.M)
    assert match
    return shlex.split(match[1].replace("\\\n", " "))


def test_all_processes_share_one_socket() -> None:
    role = of_app(daphne={"processes": 3})
    assert role.evaluate("__daphne_service_units") == [
        f"daphne-shop-{number}@11111111-22222222.service" for number in (1, 2, 3)
    ]
    assert "Service=daphne-shop-1@11111111-22222222.service" in role.render("daphne.socket.j2")
    unit = role.render("daphne.service.j2")
    assert "Sockets=daphne-shop@11111111-22222222.socket" in unit
    assert "\nNonBlocking=yes\n" in unit


def test_units_of_a_generation_name_it_and_install_nothing() -> None:
    role = of_app()
    assert "ListenStream=/run/quintet/shop/11111111-22222222/daphne.sock" in role.render("daphne.socket.j2")
    for text in (role.render("daphne.socket.j2"), role.render("daphne.service.j2")):
        assert "[Install]" not in text
        assert ".loaded" not in text


@pytest.mark.parametrize(("cores", "processes"), [(1, 1), (2, 2), (4, 4), (32, 4)])
def test_processes_follow_cores(cores: int, processes: int) -> None:
    role = daphne()
    role.variables["ansible_facts"] = {**FACTS, "processor_nproc": cores}
    assert len(role.evaluate("__daphne_service_units")) == processes


@pytest.mark.parametrize("variables", [{}, {"access_log": True, "websocket_timeout": 60, "socket": "127.0.0.1:8001"}])
def test_the_launcher_understands_its_arguments(variables: dict[str, Any]) -> None:
    role = daphne(**variables)
    _, _, *arguments = command(role)
    launcher = role.path / "files/daphne_launcher.py"
    check = f"import sys; sys.path.insert(0, {str(launcher.parent)!r}); import daphne_launcher; print(daphne_launcher.parse())"
    done = subprocess.run([sys.executable, "-c", check, *arguments], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert "drain_seconds=30" in done.stdout
    # Over TCP anybody may be the peer.
    assert f"proxy_headers={'socket' not in variables}" in done.stdout


def test_systemd_waits_longer_than_the_drain() -> None:
    service = daphne(drain_seconds=100, application_close_timeout=20).render("daphne.service.j2")
    match = re.search(r"^TimeoutStopSec=(\d+)$", service, re.M)
    assert match
    # The launcher's own limit: the drain, 5 s for close frames, the application's time, 1 s.
    assert int(match[1]) > 100 + 5 + 20 + 1


def test_another_number_of_processes_restarts_none_that_stays() -> None:
    assert daphne(processes=2).evaluate("__daphne_digest") == daphne(processes=4).evaluate("__daphne_digest")
    assert daphne(processes=2).render("daphne.service.j2") == daphne(processes=4).render("daphne.service.j2")


@pytest.mark.parametrize("change", [{"drain_seconds": 5}, {"environment": {"A": "1"}}, {"application_version": "2"}])
def test_each_change_restarts(change: dict[str, Any]) -> None:
    assert daphne(**change).evaluate("__daphne_digest") != daphne().evaluate("__daphne_digest")


def test_surplus_processes_are_those_beyond_the_wanted_number() -> None:
    role = daphne(processes=2)
    files = [{"path": f"/etc/systemd/system/daphne-echo-{number}.service"} for number in (1, 2, 3, 12)]
    role.variables["__daphne_found"] = {"files": files}
    assert role.evaluate("__daphne_surplus") == [
        "/etc/systemd/system/daphne-echo-12.service",
        "/etc/systemd/system/daphne-echo-3.service",
    ]


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"app_name": "a-b"}, "daphne_app_name: 'a-b'"),
        ({"application": "echo"}, "daphne_application: 'echo'"),
        ({"processes": 0}, "daphne_processes: 0"),
        ({"memory_max": "0"}, "daphne_memory_max: '0' is no amount of memory."),
        ({"tasks_max": "lots"}, "daphne_tasks_max: 'lots' is no number of tasks."),
        ({"drain_seconds": -1}, "daphne_drain_seconds: -1"),
        ({"socket": "/run/x y"}, "daphne_socket"),
        ({"restart_on": ["echo.py"]}, "'echo.py' cannot stand in a unit"),
    ],
)
def test_says_what_is_wrong(variables: dict[str, Any], said: str) -> None:
    assert said in "\n".join(daphne(**variables).evaluate("__daphne_problems"))


def test_finds_nothing_wrong_with_what_is_right() -> None:
    assert daphne().evaluate("__daphne_problems") == []
    (problem,) = of_app(daphne={"process": 4}).evaluate("__daphne_problems")
    assert problem.startswith("django_app.daphne: 'process' is no setting of Daphne.")


def test_who_asks_for_it_stops_before_it() -> None:
    assert "\nBefore=" not in daphne().render("daphne.service.j2")
    text = daphne(before=["nginx.service"]).render("daphne.service.j2")
    assert "\nBefore=nginx.service\n" in text.partition("[Service]")[0]
