"""What is between the hosts of a site: who reaches whom, and how the edge shares out (Molecule scenario cluster)."""

from __future__ import annotations

import collections
import json
import re
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from cluster import ADDRESSES, APPS, FOLDER, HOSTS, SITE, asked, site, sockets_on
from hosts import Answer, Host, Site, wait_for

pytestmark = pytest.mark.thorough

NAMES = {HOSTS[name].name: name for name in APPS}
REQUESTS = 40


# ---- firewall ---------------------------------------------------------------------------------------------------------


def redis_port() -> int:
    """Return the port of the app's Redis."""
    listed = HOSTS["redis1"].run("ss", "--listening", "--tcp", "--numeric", "--no-header")
    (port,) = {line.split()[3].rpartition(":")[2] for line in listed.splitlines() if ADDRESSES["redis1"] in line}
    return int(port)


def connects(client: Host, name: str, port: int) -> str:
    """Return what a host gets that connects to a port of another: connected, refused or nothing."""
    told = client.run("sh", "-c", f"timeout 3 bash -c '</dev/tcp/{ADDRESSES[name]}/{port}' 2>&1; echo code $?")
    return "nothing" if "code 124" in told else "connected" if told.strip() == "code 0" else "refused"


def test_a_stranger_gets_nothing_not_even_a_no() -> None:
    closed = [("db1", 5432), ("redis1", redis_port()), ("app1", 443), ("app1", 80), ("app2", 443), ("edge1", 5432)]
    assert {(name, port): connects(HOSTS["stranger"], name, port) for name, port in closed} == dict.fromkeys(
        closed, "nothing"
    )
    assert connects(HOSTS["stranger"], "edge1", 80) == "connected"
    # Of a site without HTTPS: let in, and nobody is there.
    assert connects(HOSTS["stranger"], "edge1", 443) == "refused"
    assert connects(HOSTS["stranger"], "db1", 22) == "connected"


def test_a_host_of_the_site_reaches_what_is_for_it_alone() -> None:
    redis = redis_port()
    assert connects(HOSTS["app1"], "db1", 5432) == connects(HOSTS["app2"], "redis1", redis) == "connected"
    assert connects(HOSTS["edge1"], "app2", 443) == "connected"
    others = [("edge1", "db1", 5432), ("edge1", "redis1", redis), ("db1", "redis1", redis), ("app1", "app2", 443)]
    assert {other: connects(HOSTS[other[0]], *other[1:]) for other in others} == dict.fromkeys(others, "nothing")


def test_the_firewall_is_there_after_a_boot_and_others_tables_are_left_alone() -> None:
    host = HOSTS["redis1"]
    show = ("nft", "list", "table", "inet", "quintet_firewall")
    before = host.run(*show)
    assert "policy drop" in before
    # As at boot, and as when somebody has taken it away.
    host.run("nft", "add table inet stranger")
    try:
        host.run("nft", "delete table inet quintet_firewall")
        host.run("systemctl", "restart", "quintet-firewall")
        assert host.run(*show) == before
        assert "table inet stranger" in host.run("nft", "list", "tables")
    finally:
        host.run("nft", "delete table inet stranger")
    assert host.run("systemctl", "show", "--property=WantedBy", "--value", "quintet-firewall").split() == [
        "sysinit.target"
    ]


def test_rules_that_would_keep_the_controller_out_are_refused() -> None:
    before = HOSTS["db1"].run("nft", "list", "ruleset")
    refused = site("--tags", "firewall", "--limit", "db1", "-e", '{"firewall_ssh_from": ["192.0.2.0/24"]}')
    assert refused.code != 0
    assert "SSH would be open to 192.0.2.0/24 on 22 alone" in refused.text
    assert HOSTS["db1"].run("nft", "list", "ruleset") == before


def test_a_host_takes_back_what_keeps_the_controller_out_all_the_same() -> None:
    host = HOSTS["db1"]
    before = host.run("nft", "list", "ruleset")
    # As if something between the two needed more than both can see: by a variable that is the role's own.
    blind = '{"firewall_ssh_from": ["192.0.2.0/24"], "__firewall_controller": [], "firewall_confirm_seconds": 30}'
    failed = site("--tags", "firewall", "--limit", "db1", "-e", blind)
    assert failed.code != 0
    assert "no new connection of the controller came in through the new rules" in failed.text
    wait_for("the rules from before", lambda: host.run("nft", "list", "ruleset") == before)
    again = site("--tags", "firewall", "--limit", "db1")
    assert again.code == 0, again.output[-4000:]


# ---- to whom the edge goes --------------------------------------------------------------------------------------------


def server_lines() -> list[str]:
    """Return what stands behind `server` in the upstreams that the edge's Nginx has loaded."""
    loaded = HOSTS["edge1"].run("sh", "-c", "nginx -T 2>/dev/null")
    return [
        server
        for block in re.findall(r"^upstream [^{]*\{(.*?)^\}", loaded, re.M | re.S)
        for server in re.findall(r"^\s*server (.*);", block, re.M)
    ]


def test_the_edge_looks_up_no_name() -> None:
    servers = server_lines()
    assert len(servers) >= 2 * len(APPS)
    assert {server.split()[0] for server in servers} == {f"{ADDRESSES[name]}:443" for name in APPS}
    loaded = HOSTS["edge1"].run("sh", "-c", "nginx -T 2>/dev/null")
    assert not re.search(r"^\s*resolver\b", loaded, re.M)
    # Each is an upstream of these, or one of them by a map that knows no others.
    asked_for = set(re.findall(r"proxy_pass \w+://([^;]+);", loaded))
    assert {name for name in asked_for if not name.startswith(("chat-", "$quintet_chat_"))} == set()
    for name in asked_for:
        if name.startswith("$"):
            (chosen,) = re.findall(rf"^map [^\n]* {re.escape(name)} {{(.*?)^}}", loaded, re.M | re.S)
            assert {line.split()[-1].startswith("chat-") for line in chosen.splitlines() if line.strip()} == {True}


def journal(host: str, mark: str) -> list[dict[str, object]]:
    """Return the lines of a host's access log for a request with that mark, once Nginx has written them: it does so once a second."""
    found: list[dict[str, object]] = []

    def written() -> bool:
        listed = HOSTS[host].run("sh", "-c", f"grep -h {mark} /var/log/nginx/access.log || true")
        found[:] = [json.loads(line) for line in listed.splitlines()]
        return bool(found)

    wait_for(f"{mark} in the log of {host}", written, seconds=10)
    return found


def asked_for(mark: str) -> str:
    """Return the app hosts that the edge has asked for a request, in turn."""
    (line,) = journal("edge1", mark)
    return str(line["upstream"])


def marked(method: str = "GET", path: str = "/telling?", **headers: str) -> tuple[str, Answer]:
    """Send a request that can be told from all others; returns its mark with the answer."""
    mark = uuid.uuid4().hex
    return mark, SITE.request(method, f"{path}&mark={mark}", headers=headers)


@contextmanager
def without_app(name: str) -> Iterator[None]:
    """Let a host's Nginx run with nobody behind it."""
    units = "gunicorn-chat@*"
    loaded = HOSTS[name].run(
        "systemctl", "list-units", "--plain", "--no-legend", "--state=active", f"{units}.socket", f"{units}.service"
    )
    names = [line.split()[0] for line in loaded.splitlines()]
    # The socket first, or it would start the service again.
    HOSTS[name].run("systemctl", "stop", *sorted(names, key=lambda unit: unit.endswith(".service")))
    try:
        yield
    finally:
        HOSTS[name].run("systemctl", "start", *names)
        # Clients that nobody has seen: also a sticky edge may send them to any host.
        wait_for(
            "the host again",
            lambda: HOSTS[name].name in {asked(Cookie=f"client={uuid.uuid4()}")["host"] for _ in range(6)},
        )


def test_a_get_passes_over_a_host_without_its_app_and_a_post_is_asked_once() -> None:
    with without_app("app2"):
        answers = [marked() for _ in range(REQUESTS)]
        assert {answer.status for _, answer in answers} == {200}
        assert {answer.json["host"] for _, answer in answers} == {HOSTS["app1"].name}
        # It is left out after one failure, and tried again once in five seconds: by one of these.
        found: list[str] = []

        def lost() -> bool:
            mark, answer = marked("POST")
            assert answer.status in (200, 502)
            found.extend([mark] if answer.status == 502 else [])
            return bool(found)

        wait_for("a POST that the host got", lost, seconds=20)
        assert asked_for(found[0]) == f"{ADDRESSES['app2']}:443"
        assert len(journal("app2", found[0])) == 1
        # One of the others was asked of both.
        first, second = (f"{ADDRESSES[name]}:443" for name in ("app2", "app1"))
        assert f"{first}, {second}" in {asked_for(mark) for mark, _ in answers}


def test_what_an_app_answers_itself_is_no_reason_to_go_elsewhere() -> None:
    # Neither is its end in the middle of a request: the next host's would end, too, and both be left out.
    for path in ("/telling?status=502", "/telling?die"):
        mark, answer = marked(path=path)
        assert answer.status == 502
        assert asked_for(mark) in {f"{ADDRESSES[name]}:443" for name in APPS}, path
    answers = collections.Counter(asked()["host"] for _ in range(REQUESTS))
    assert set(answers) == set(NAMES)
    assert max(answers.values()) - min(answers.values()) <= REQUESTS / 10, answers


# ---- kept connections -------------------------------------------------------------------------------------------------


def connections(mark: str) -> tuple[set[tuple[str, str]], collections.Counter[str]]:
    """Return the connections that marked requests came by to both app hosts, and how many requests came with which kind of handshake."""
    seen: set[tuple[str, str]] = set()
    kinds: collections.Counter[str] = collections.Counter()
    for name in APPS:
        listed = HOSTS[name].run("sh", "-c", f"grep -h {mark} /var/log/nginx/connections.log || true")
        for line in listed.splitlines():
            _, number, kind = line.split()
            if (name, number) not in seen:
                kinds["resumed" if kind == "r" else "full"] += 1
            seen.add((name, number))
    return seen, kinds


def test_requests_share_kept_connections_and_new_ones_take_up_their_session() -> None:
    mark = uuid.uuid4().hex
    for _ in range(REQUESTS):
        assert SITE.get(f"/telling?mark={mark}").status == 200
    seen, _ = connections(mark)
    processes = HOSTS["edge1"].run("sh", "-c", "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n'")
    workers = processes.splitlines().count("nginx: worker process")
    assert 0 < len(seen) <= workers * len(APPS)
    # A WebSocket has a connection of its own; its handshake is a short one, but for the first to each host.
    mark = uuid.uuid4().hex
    with ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(SITE.websocket(f"/ws/rooms/lobby/?mark={mark}"))
    wait_for("them in the logs", lambda: len(connections(mark)[0]) == 8)
    assert connections(mark)[1]["full"] <= len(APPS)


# ---- stickiness -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sticky() -> Iterator[None]:
    """Let clients be told apart by a cookie for a while."""
    file = FOLDER / "inventory/group_vars/all/apps.yml"
    before = file.read_text()
    file.write_text(f"{before}    nginx: {{sticky: cookie client}}\n")
    try:
        played = site("--tags", "nginx", "--limit", "edge1")
        assert played.code == 0, played.output[-4000:]
        yield
    finally:
        file.write_text(before)
        played = site("--tags", "nginx", "--limit", "edge1")
        assert played.code == 0, played.output[-4000:]


def hosts_of(client: str) -> set[str]:
    """Return the hosts that answer a client, who is told by a cookie; by its address without one."""
    return {asked(**({"Cookie": f"client={client}"} if client else {}))["host"] for _ in range(8)}


def test_a_client_goes_to_any_host() -> None:
    assert hosts_of("one") == set(NAMES)


def test_a_sticky_client_stays_on_its_host_by_http_and_by_websocket(sticky: None) -> None:
    homes = {client: hosts_of(client) for client in ("", *(uuid.uuid4().hex for _ in range(12)))}
    assert {len(found) for found in homes.values()} == {1}
    assert {host for found in homes.values() for host in found} == set(NAMES)
    client, (home,) = next((client, found) for client, found in homes.items() if client)
    browser = Site(HOSTS["edge1"], "chat.test", {"client": client})
    before = {name: sockets_on(HOSTS[name]) for name in APPS}
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(browser.websocket("/ws/rooms/lobby/"))
        grown = {name: sockets_on(HOSTS[name]) - before[name] for name in APPS}
    assert grown == {name: 4 if HOSTS[name].name == home else 0 for name in APPS}
    # While its host has no app, it goes elsewhere, and then home again.
    with without_app(NAMES[home]):
        assert hosts_of(client) == set(NAMES) - {home}
