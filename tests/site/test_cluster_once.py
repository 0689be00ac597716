"""Work that one of several app hosts does: who does it, and how it moves (Molecule scenario cluster)."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import cluster
import pytest
import yaml
from cluster import APPS, FOLDER, container, site, unplugged
from hosts import wait_for

pytestmark = pytest.mark.thorough

HOSTS = {name: cluster.HOSTS[name] for name in APPS}
DATABASE = cluster.HOSTS["db1"]
# What the app writes there: when its worker begins, goes on and ends, each run of its timer, and each load of its first data.
NOTES = "/srv/chat/shared/once"
WORKER, TIMERS = "worker-chat-single-1", "once-chat"
# The worker writes this often; the timer's time comes this often, and may be so much late.
WORKS_SECONDS, TICK_SECONDS, LATE_SECONDS = 0.25, 4, 1.5
# From the loss of a host, or of its network, until another one has taken over: 25 for the lock, the rest for a loaded machine.
MOVE_SECONDS = 40


@dataclass(frozen=True, order=True)
class Span:
    """How long a process of the worker worked, and where."""

    began: float
    ended: float
    host: str


def notes(name: str, *hosts: str) -> list[list[str]]:
    """Return the words of all lines that hosts have of something."""
    found = [HOSTS[host].run("cat", f"{NOTES}/{name}", check=False) for host in hosts or HOSTS]
    return [line.split() for text in found for line in text.splitlines() if not line.startswith("cat:")]


def spans(*hosts: str) -> list[Span]:
    """Return the worker's processes in the order of their beginnings."""
    latest: dict[tuple[str, str], Span] = {}
    found = []
    for word, host, process, moment in notes("worker", *hosts):
        # The number of a process comes again after a restart of the host.
        if word == "begins" and (host, process) in latest:
            found.append(latest.pop((host, process)))
        one = latest.get((host, process), Span(float(moment), float(moment), host))
        latest[host, process] = Span(one.began, float(moment), host)
    return sorted([*found, *latest.values()])


def never_two(found: list[Span]) -> bool:
    """Say whether each process had ended when the next one began."""
    return all(earlier.ended <= later.began for earlier, later in itertools.pairwise(found))


def ticks(since: float = 0) -> list[tuple[float, str]]:
    """Return when and where the timer's command ran, in order."""
    found = sorted((float(moment), host) for moment, host in notes("timer"))
    return [(moment, host) for moment, host in found if moment >= since]


def never_twice(found: list[tuple[float, str]]) -> bool:
    """Say whether no time of the timer was one of two runs."""
    return all(later - earlier > LATE_SECONDS for (earlier, _), (later, _) in itertools.pairwise(found))


def told(name: str, unit: str) -> str:
    """Return what `quintet status` says of a unit of the current generation; empty where it says nothing."""
    (app,) = HOSTS[name].quintet("status", "chat")["apps"]
    current = next(one for one in app["generations"] if one["generation"] == app["current"])
    return next((text for full, text in current["once"].items() if full.startswith(f"{unit}@")), "")


def holder(unit: str, words: str) -> str:
    """Return the one host that does something; raises AssertionError unless the other waits for it."""
    said = {name: told(name, unit) for name in HOSTS}
    (name,) = [name for name in HOSTS if said[name] == words]
    (other,) = [other for other in HOSTS if other != name]
    assert said[other] == f"waits: {HOSTS[name].name} does this", said
    return name


def settled() -> bool:
    """Say whether one host does the work, and the other waits for it."""
    try:
        return bool(holder(WORKER, "does this") and holder(TIMERS, "lets the timers run here"))
    except (AssertionError, ValueError, StopIteration):
        return False


@pytest.fixture(autouse=True)
def both() -> Iterator[None]:
    """See to it that both hosts are there, before and after."""
    wait_for("one host that works and one that waits", settled)
    yield
    wait_for("one host that works and one that waits", settled)


def test_one_host_does_the_work_and_both_are_well() -> None:
    name = holder(WORKER, "does this")
    began = time.time()
    time.sleep(TICK_SECONDS * 4)
    assert {host for _, host, _, moment in notes("worker") if float(moment) > began} == {HOSTS[name].name}
    assert never_two(spans())
    found = ticks(since=began)
    assert len(found) in (3, 4, 5), found
    assert {host for _, host in found} == {HOSTS[holder(TIMERS, "lets the timers run here")].name}
    assert never_twice(found)
    # One that waits is as well as one that works.
    for host in HOSTS.values():
        assert host.quintet("status", "chat")["apps"][0]["healthy"] is True


def test_hosts_that_cannot_agree_are_refused_before_anything_is_touched() -> None:
    given = yaml.safe_load((FOLDER / "inventory/group_vars/all/apps.yml").read_text())
    apps = [{**app, "database": False} for app in given["django_apps"]]
    refused = site("-e", json.dumps({"django_apps": apps}))
    assert (refused.code, refused.changed) == (2, 0), refused.output[-4000:]
    for entry in ("workers[0].runs_on: 'single'", "timers[0].runs_on: 'tick'"):
        assert (
            f"django_apps[0].{entry} is to run on one host, and app1, app2 share no PostgreSQL for 'chat'"
            in refused.text
        )


def test_a_change_moves_the_work_and_never_doubles_it() -> None:
    before, began = spans(), time.time()
    with (FOLDER / "sample_app/config/single.py").open("a") as source:
        print("# Another release.", file=source)
    done = site(playbook="playbooks/deploy.yml")
    assert done.code == 0, done.output[-6000:]
    wait_for("one host that works and one that waits", settled)
    after = spans()
    assert len(after) > len(before)
    assert never_two(after), after
    assert after[-1].ended > time.time() - WORKS_SECONDS * 8
    assert never_twice(ticks()), ticks(since=began)
    # What was loaded after the migrations was loaded by one host.
    releases = [generation.partition("-")[0] for (generation,) in notes("first")]
    assert len(releases) == len(set(releases)) >= 2
    assert HOSTS["app1"].current("chat").partition("-")[0] in releases


def loss(name: str, lose: Callable[[], None]) -> tuple[Span, float, float]:
    """Lose the host that works; returns the span of who took over, and when the host was lost and when it was seen."""
    (other,) = [other for other in HOSTS if other != name]
    count = len(spans(other))
    lost = time.time()
    lose()
    wait_for("another host that works", lambda: len(spans(other)) > count, MOVE_SECONDS)
    wait_for("its timers", lambda: told(other, TIMERS) == "lets the timers run here", MOVE_SECONDS)
    return spans(other)[-1], lost, time.time()


def test_a_killed_hosts_work_moves() -> None:
    name = holder(WORKER, "does this")
    taken, lost, _ = loss(name, lambda: container("kill", name))
    print(f"\nkilled: another host began after {taken.began - lost:.1f} s")
    container("start", name)
    wait_for("one host that works and one that waits", settled)
    assert never_two(spans()), spans()
    assert never_twice(ticks()), ticks(since=lost - 10)
    assert holder(WORKER, "does this") != name, "who comes back waits"


def test_a_host_without_its_network_has_stopped_before_another_begins() -> None:
    name = holder(WORKER, "does this")
    with ExitStack() as network:
        taken, lost, moved = loss(name, lambda: network.enter_context(unplugged(name)))
        (ended,) = [span.ended for span in spans(name) if span.ended > lost - WORKS_SECONDS * 4]
        assert ended < taken.began
        print(f"\nnetwork cut: ended here after {ended - lost:.1f} s, began there after {taken.began - lost:.1f} s")
        assert HOSTS[name].fails("sh", "-c", "ls /run/quintet/chat/once-*/holds")
        # It was told to stop, and not killed.
        assert notes("worker", name)[-1][0] == "ends"
        wait_for("a time of the timer there", lambda: any(host != HOSTS[name].name for _, host in ticks(since=lost)))
        assert [moment for moment, host in ticks(since=lost + 8) if host == HOSTS[name].name] == []
        assert moved - lost < MOVE_SECONDS * 2
    wait_for("one host that works and one that waits", settled)
    assert never_two(spans()), spans()
    assert never_twice(ticks()), ticks(since=lost - 10)


def test_after_a_restart_of_the_database_it_is_done_again_and_by_one() -> None:
    count, began = len(spans()), time.time()
    DATABASE.run("sh", "-c", "systemctl restart 'postgresql@*'")
    wait_for("the worker again", lambda: len(spans()) > count, MOVE_SECONDS)
    wait_for("one host that works and one that waits", settled)
    print(f"\ndatabase restarted: began again after {spans()[-1].began - began:.1f} s")
    assert never_two(spans()), spans()
    assert never_twice(ticks()), ticks(since=began - 10)
