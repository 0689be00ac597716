"""A site on five hosts, asked through its edge (Molecule scenario cluster)."""

from __future__ import annotations

import collections
import json
import uuid
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from cluster import ADDRESSES, APPS, HOSTS, SITE, asked, asking, container, gateway, sockets_on
from hosts import receive, wait_for

REQUESTS = 200
SOCKETS = 8


# ---- balance ----------------------------------------------------------------------------------------------------------


def test_requests_are_shared_out_evenly() -> None:
    hosts = collections.Counter(asked()["host"] for _ in range(REQUESTS))
    assert sum(hosts.values()) == REQUESTS
    assert {f"quintet-cluster-{name}" for name in APPS} == set(hosts)
    assert max(hosts.values()) - min(hosts.values()) <= REQUESTS / 10, hosts


@pytest.fixture
def room() -> Iterator[list[object]]:
    """Give some WebSockets in one room."""
    with ExitStack() as stack:
        yield [stack.enter_context(SITE.websocket("/ws/rooms/lobby/")) for _ in range(SOCKETS)]


def test_messages_reach_sockets_on_the_other_host(room: list[object]) -> None:
    assert {name: sockets_on(HOSTS[name]) for name in APPS} == dict.fromkeys(APPS, SOCKETS // 2)
    text = uuid.uuid4().hex
    first = room[0]
    first.send(json.dumps({"type": "message", "ref": uuid.uuid4().hex, "text": text}))  # type: ignore[attr-defined]
    for connection in room:
        assert receive(connection, "message")["text"] == text  # type: ignore[arg-type]


def test_files_come_from_the_app_hosts() -> None:
    page = SITE.get("/").body
    path = next(part for part in page.split('"') if part.startswith("/static/") and part.endswith(".css"))
    answer = SITE.get(path)
    assert (answer.status, answer.headers["cache-control"]) == (200, "public, max-age=31536000, immutable")


# ---- who the client is ------------------------------------------------------------------------------------------------


def test_django_is_told_the_client_and_nobody_can_forge_it() -> None:
    told = asked(**{"X-Forwarded-For": "192.0.2.9", "X-Forwarded-Proto": "https", "X-Real-IP": "192.0.2.9"})
    assert (told["client"], told["scheme"], told["asked"]) == (gateway(), "http", "chat.test")


@pytest.mark.usefixtures("no_firewall")
def test_app_hosts_let_in_nobody_but_the_edge() -> None:
    ask = ["curl", "--silent", "--show-error", "--insecure", "--resolve", f"chat.test:443:{ADDRESSES['app1']}"]
    url = "https://chat.test/telling"
    forged = ["--header", "X-Forwarded-For: 192.0.2.9", url]
    # Without a certificate Nginx says which it wants, and asks no app.
    assert "No required SSL certificate was sent" in HOSTS["stranger"].run(*ask, *forged)
    # Another host of the inventory is no edge.
    own = ["--cert", "/etc/quintet-authority/certificate.pem", "--key", "/etc/quintet-authority/private/key.pem"]
    assert HOSTS["db1"].fails(*ask, *own, *forged)
    assert json.loads(HOSTS["edge1"].run(*ask, *own, *forged))["client"] == "192.0.2.9"


# ---- who is let in ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_firewall")
def test_the_database_gives_a_stranger_nothing() -> None:
    url = f"host={ADDRESSES['db1']} user=chat_1 dbname=chat password=x sslmode=require"
    told = HOSTS["stranger"].run("sh", "-c", f"psql '{url}' -c 'select 1' 2>&1 || true")
    assert "no pg_hba.conf entry for host" in told
    # An app host is asked for its password, and only by TLS.
    told = HOSTS["app1"].run("sh", "-c", f"psql '{url}' -c 'select 1' 2>&1 || true")
    assert "password authentication failed" in told
    plain = url.replace("sslmode=require", "sslmode=disable")
    told = HOSTS["app1"].run("sh", "-c", f"psql '{plain}' -c 'select 1' 2>&1 || true")
    assert "no encryption" in told


@pytest.mark.usefixtures("no_firewall")
def test_redis_gives_a_stranger_nothing() -> None:
    listed = HOSTS["redis1"].run("ss", "--listening", "--tcp", "--numeric", "--no-header")
    (port,) = {line.split()[3].rpartition(":")[2] for line in listed.splitlines() if ADDRESSES["redis1"] in line}
    ask = f"redis-cli -h {ADDRESSES['redis1']} -p {port}"
    assert "PONG" not in HOSTS["stranger"].run("sh", "-c", f"{ask} ping 2>&1 || true")
    assert "NOAUTH" in HOSTS["stranger"].run("sh", "-c", f"{ask} --tls --insecure ping 2>&1 || true")


def test_servers_listen_for_other_hosts_on_their_named_address_alone() -> None:
    for name in ("db1", "redis1"):
        listed = HOSTS[name].run("ss", "--listening", "--tcp", "--numeric", "--no-header").splitlines()
        addresses = {line.split()[3].rpartition(":")[0] for line in listed if not line.split()[3].endswith(":22")}
        # The engine's own server of names is in every container.
        assert addresses - {"127.0.0.11"} == {ADDRESSES[name]}


# ---- loss -------------------------------------------------------------------------------------------------------------


def test_a_host_that_is_killed_is_passed_over_and_comes_back() -> None:
    with asking() as requests:
        wait_for("both hosts", lambda: requests.hosts(10) == {*APPS})
        container("kill", "app2")
        wait_for("the other host for all", lambda: requests.hosts(20) == {"app1"})
        container("start", "app2")
        wait_for("both hosts again", lambda: requests.hosts(10) == {*APPS})
    # What it was answering when it was killed is lost.
    assert sum(requests.failed().values()) <= 2, requests.failed()
