"""Switches of an app on several hosts, one after the other, with one of them sick or away (Molecule scenario cluster)."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from cluster import APPS, FOLDER, HOSTS, Asking, asking, container, site
from hosts import wait_for

APP1, APP2 = HOSTS["app1"], HOSTS["app2"]
NGINX_ASKS = "/etc/nginx/quintet/sites/chat.conf"


def change_code() -> None:
    """Make the app another one, so that a deploy has something to do."""
    with (FOLDER / "sample_app/config/telling.py").open("a") as code:
        code.write(f"# {uuid.uuid4()}\n")


def releases() -> set[str]:
    """Return the releases that the app hosts serve."""
    return {HOSTS[name].current("chat").split("-")[0] for name in APPS}


def entries(name: str) -> list[dict[str, Any]]:
    """Return a host's log, oldest first."""
    found: list[dict[str, Any]] = HOSTS[name].quintet("log", "chat", "--lines", "50")["log"]
    return found


def left_out() -> list[str]:
    """Return the servers that the edge does not ask."""
    lines = HOSTS["edge1"].run("cat", NGINX_ASKS).splitlines()
    return sorted({line.split()[1] for line in lines if line.strip().endswith(" down;")})


@pytest.fixture
def asked() -> Iterator[Asking]:
    """Ask all the time; at the end no request may have failed."""
    with asking() as requests:
        yield requests
    assert not requests.failed()


def test_hosts_switch_one_after_the_other_and_nobody_notices(asked: Asking) -> None:
    before = releases()
    change_code()
    played = site(playbook="playbooks/deploy.yml")
    assert played.code == 0, played.output[-4000:]
    assert releases().isdisjoint(before)
    assert len(releases()) == 1
    first, second = (
        {one["action"]: one["time"] for one in entries(name) if one.get("generation") == HOSTS[name].current("chat")}
        for name in APPS
    )
    # The second one began when the first one had answered through the edge; both were confirmed after that.
    assert first["activate"] <= second["activate"]
    assert min(first["confirm"], second["confirm"]) >= second["activate"]
    # Each was probed through the edge, which was told to ask nobody else.
    probed = HOSTS["edge1"].run("cat", "/var/log/nginx/access.log")
    for address in ("172.31.77.11", "172.31.77.12"):
        lines = [json.loads(line) for line in probed.splitlines() if '"quintet-probe"' in line]
        own = {line["upstream"] for line in lines if line["client"] == address}
        assert own == {f"{address}:443"}
    wait_for("both hosts with the new release", lambda: {one.release for one in asked.last(20)} == releases())
    assert asked.hosts(20) == {*APPS}


@pytest.mark.thorough
def test_a_host_that_cannot_be_asked_through_the_edge_takes_all_back(asked: Asking) -> None:
    before = releases()
    # The app is well there, and so is what activate asks of it directly; but nobody gets to it.
    APP2.run("systemctl", "stop", "nginx.service")
    try:
        change_code()
        played = site(playbook="playbooks/deploy.yml")
    finally:
        APP2.run("systemctl", "start", "nginx.service")
    assert played.code != 0
    told = " ".join(played.output.split())
    assert "app 'chat' on app2: generation" in told
    assert "through 172.31.77.10:80: got" in told
    assert "Step: edge" in told
    assert "app 'chat' stays as it was on app1, since app2 could not follow." in told
    assert releases() == before
    failed = next(one for one in reversed(entries("app2")) if one["action"] == "activate")
    # The first one had switched, alone, and went back.
    done = [
        one["action"]
        for one in entries("app1")
        if str(one.get("generation")).startswith(failed["generation"].split("-")[0])
    ]
    assert [action for action in done if action in ("activate", "confirm", "undo")] == ["activate", "undo"]
    wait_for("the old release alone", lambda: {one.release for one in asked.last(20)} == before)


@pytest.mark.thorough
def test_a_host_that_was_away_gets_the_current_generation_before_it_is_asked(asked: Asking) -> None:
    before, old = releases(), APP2.current("chat")
    container("stop", "app2")
    try:
        change_code()
        # With a host away nothing is changed anywhere, until somebody says that it may be left out; and then the edge has to know.
        played = site(playbook="playbooks/deploy.yml")
        assert played.count("app2", "unreachable") == 1
        assert {APP1.current("chat").split("-")[0]} == before
        played = site("--limit", "app1", playbook="playbooks/deploy.yml")
        assert played.code != 0
        assert "--limit leaves out app2, which would not get this change, and edge1" in " ".join(played.output.split())
        assert {APP1.current("chat").split("-")[0]} == before
        played = site("--limit", "all:!app2", playbook="playbooks/deploy.yml")
        assert played.code == 0, played.output[-4000:]
        new = APP1.current("chat").split("-")[0]
        assert {new}.isdisjoint(before)
        assert left_out() == ["172.31.77.12:443"]
    finally:
        container("start", "app2")
    wait_for(
        "app2 with what it had",
        lambda: not APP2.fails("systemctl", "is-active", "--quiet", f"gunicorn-chat@{old}.service"),
    )
    wait_for("its gate to open", lambda: APP2.quintet("status", "chat")["apps"][0]["gate"] == "open")
    since = len(asked.told)
    wait_for("some requests", lambda: len(asked.told) > since + 40)
    assert {one.release for one in asked.told[since:]} == {new}
    # The next run of everything brings it in; only after its switch is it asked.
    played = site()
    assert played.code == 0, played.output[-4000:]
    assert releases() == {new}
    assert left_out() == []
    wait_for("both hosts", lambda: asked.hosts(20) == {*APPS})
    assert {one.release for one in asked.told[since:]} == {new}


@pytest.mark.thorough
def test_a_host_that_comes_back_sick_is_not_asked_before_its_probes_pass(asked: Asking) -> None:
    refused = "/etc/systemd/system/gunicorn-chat@.service.d/sick.conf"
    APP2.run(
        "sh", "-c", f"mkdir -p $(dirname {refused}) && printf '[Service]\\nExecStartPre=/bin/false\\n' > {refused}"
    )
    container("stop", "app2")
    container("start", "app2")
    wait_for("Nginx there", lambda: not APP2.fails("systemctl", "is-active", "--quiet", "nginx.service"))
    wait_for("a boot that failed", lambda: not APP2.fails("systemctl", "is-failed", "--quiet", "quintet-chat.service"))
    status = APP2.quintet("status", "chat")["apps"][0]
    assert (status["gate"], status["healthy"]) == ("closed", False)
    since = len(asked.told)
    wait_for("some requests", lambda: len(asked.told) > since + 40)
    assert {one.host for one in asked.told[since:]} == {APP1.name}
    APP2.run("sh", "-c", f"rm -r $(dirname {refused}) && systemctl daemon-reload")
    # Nobody opens it but the host itself, once the app answers.
    APP2.run("systemctl", "restart", "quintet-chat.service")
    wait_for("both hosts", lambda: asked.hosts(20) == {*APPS})
    assert APP2.quintet("status", "chat")["apps"][0]["gate"] == "open"
