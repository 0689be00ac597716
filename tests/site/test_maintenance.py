"""Maintenance by the host command and by the playbook (Molecule scenario overload)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest
from hosts import Host, Site, play, play_well, receive, wait_for
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection

HOST = Host(os.environ.get("OVERLOAD_HOST", "quintet-overload"))
SITE = Site(HOST, "chat.test")
PLAYBOOK = "playbooks/maintenance.yml"


@pytest.fixture(autouse=True)
def _ends() -> Iterator[None]:
    yield
    HOST.quintet("maintenance", "chat", "off")


def alive(connection: ClientConnection) -> bool:
    connection.send(json.dumps({"type": "ping"}))
    return bool(receive(connection, "pong"))


def nginx_workers() -> set[str]:
    """The processes of Nginx's workers, which a reload replaces."""
    master = HOST.run("cat", "/run/nginx.pid").strip()
    return set(HOST.run("cat", f"/proc/{master}/task/{master}/children").split())


def closed_for_people() -> None:
    page = SITE.get("/")
    assert (page.status, page.headers["retry-after"], page.headers["cache-control"]) == (503, "300", "no-store")
    assert "It will be back soon" in page.body
    posted = SITE.request("POST", "/rooms/lobby/messages", "text=x", {"Accept": "application/json"})
    assert (posted.status, posted.json["error"]) == (503, "The site is being worked on")
    with pytest.raises(InvalidStatus) as refused:
        SITE.websocket("/ws/health/")
    assert refused.value.response.status_code == 503


def test_on_and_off_by_the_host_command_with_nothing_reloaded() -> None:
    workers = nginx_workers()
    with SITE.websocket("/ws/health/") as connection:
        assert HOST.quintet("maintenance", "chat", "on")["changed"] is True
        closed_for_people()
        assert alive(connection), "open ones stay"
    assert HOST.quintet("status", "chat")["apps"][0]["maintenance"]["since"]
    # Who is on the host's list sees the site, so that a deploy can be probed.
    assert HOST.quintet("probe", "chat")["ok"] is True
    assert HOST.quintet("maintenance", "chat", "on")["changed"] is False
    assert HOST.quintet("maintenance", "chat", "off")["changed"] is True
    assert SITE.get("/").status == 200
    with SITE.websocket("/ws/health/") as connection:
        assert alive(connection)
    assert nginx_workers() == workers


def test_it_lasts_over_a_reload_and_a_restart() -> None:
    HOST.quintet("maintenance", "chat", "on")
    HOST.run("systemctl", "reload", "nginx.service")
    closed_for_people()
    HOST.run("systemctl", "restart", "nginx.service")
    wait_for("Nginx to answer", lambda: SITE.get("/").status == 503)
    closed_for_people()


def test_websockets_are_closed_with_1012_when_asked_to() -> None:
    connection = SITE.websocket("/ws/health/")
    answer = HOST.quintet("maintenance", "chat", "on", "--close-websockets")
    assert answer["closed_websockets"] is True
    with pytest.raises(ConnectionClosed) as ended:
        connection.recv(timeout=20)
    assert ended.value.rcvd is not None
    assert ended.value.rcvd.code == 1012
    closed_for_people()
    HOST.quintet("maintenance", "chat", "off")
    with SITE.websocket("/ws/health/") as again:
        assert alive(again)


def test_on_and_off_by_the_playbook() -> None:
    connection = SITE.websocket("/ws/health/")
    on = play_well(PLAYBOOK, "-e", "app=chat", "-e", "maintenance=on", "-e", "close_websockets=true")
    assert on.count(HOST.name, "changed") == 2
    closed_for_people()
    with pytest.raises(ConnectionClosed) as ended:
        connection.recv(timeout=20)
    assert ended.value.rcvd is not None
    assert ended.value.rcvd.code == 1012
    again = play_well(PLAYBOOK, "-e", "app=chat", "-e", "maintenance=on")
    assert again.changed == 0
    off = play_well(PLAYBOOK, "-e", "app=chat", "-e", "maintenance=off")
    assert off.count(HOST.name, "changed") == 1
    assert SITE.get("/").status == 200


@pytest.mark.parametrize("arguments", [["-e", "app=nothing", "-e", "maintenance=on"], ["-e", "app=chat"]])
def test_the_playbook_says_what_it_wants(arguments: list[str]) -> None:
    played = play(PLAYBOOK, *arguments)
    assert played.code != 0
    assert "an app and on or off are wanted. Name one of chat" in played.text
    assert SITE.get("/").status == 200
