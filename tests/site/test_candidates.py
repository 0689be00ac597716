"""Candidates that fail and disks that are full: none may cost a request (Molecule scenario faults)."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from changing import (
    APP,
    FAULTS,
    HOST,
    SITE,
    another_lock,
    change_code,
    deploy,
    deploy_killed,
    deploy_well,
    earlier_good,
    fails,
    generations,
    refused,
    runs,
    serving,
    status,
)
from hosts import full, wait_for
from light_load import light_load, toll
from load import Load, Rates

earlier = pytest.fixture(earlier_good)

# Nothing is timed, so the machine is left to the deploys; every kind of request comes by at each step of one.
RATES = Rates(
    kept=(1, 0.5),
    fresh=(1, 1.0),
    slow=(1, 1.0),
    post=(1, 1.0),
    static=(1, 1.0),
    visits=(1, 1.0),
    chatters=(4, 2.0),
    rooms=2,
    slow_seconds=0.5,
    pause_seconds=0.3,
)


@pytest.fixture(scope="module")
def load() -> Iterator[Load]:
    """A light load on the site for as long as the tests run."""
    with light_load(SITE, RATES) as load:
        yield load


@pytest.fixture
def built(load: Load) -> str:
    """A candidate that was built and never switched to, since its controller was killed just then; its lock is ended."""
    known = set(generations())
    change_code()
    deploy_killed("activate_host | Start, probe and switch to the generation")
    HOST.run("quintet", "unlock", APP)
    (candidate,) = set(generations()) - known
    return candidate


@pytest.mark.parametrize("fault", FAULTS)
def test_a_candidate_that_fails_is_kept_and_nobody_notices(fault: str, load: Load) -> None:
    before, known, lost = serving(), set(generations()), toll(load)
    fails(deploy(fault=fault), *FAULTS[fault])
    assert serving() == before
    (candidate,) = set(generations()) - known
    assert generations()[candidate]["state"] == "failed"
    assert "failed on" in refused("quintet", "rollback", APP, candidate)
    wait_for("the end of the candidate", lambda: not runs(candidate))
    assert status()["lock"] is None
    assert toll(load) == lost, load.ledger.problems[-5:]


def test_a_socket_in_the_way(built: str, load: Load) -> None:
    before, lost = serving(), toll(load)
    HOST.run("mkdir", "--parents", f"/run/quintet/{APP}/{built}/gunicorn.sock/in/the/way")
    told = refused("quintet", "activate", APP, built)
    assert f"gunicorn-{APP}@{built}.socket did not start" in told
    assert "Step: start" in told
    assert "Address already in use" in told
    assert generations()[built]["state"] == "failed"
    assert "failed on" in refused("quintet", "activate", APP, built)
    assert serving() == before
    assert toll(load) == lost, load.ledger.problems[-5:]


@pytest.mark.parametrize(
    ("path", "free"),
    [
        pytest.param(f"/srv/{APP}/generations", 0, marks=pytest.mark.thorough),
        (f"/srv/{APP}/generations", 600_000),
        (f"/var/lib/quintet/{APP}", 0),
        pytest.param(f"/etc/quintet/{APP}", 0, marks=pytest.mark.thorough),
        pytest.param(f"/srv/{APP}/venvs", 0, marks=pytest.mark.thorough),
        (f"/srv/{APP}/venvs", 30_000_000),
        pytest.param(f"/var/cache/quintet/{APP}", 0, marks=pytest.mark.thorough),
    ],
    ids=["source", "static files", "state", "environment", "virtual environment", "packages", "cache"],
)
def test_a_disk_that_is_full_while_it_is_built(path: str, free: int, load: Load) -> None:
    before, lost = serving(), toll(load)
    with another_lock(), full(HOST, path, free):
        played = deploy(mark=uuid.uuid4().hex)
        assert serving() == before
    fails(played, "No space left on device", f"quintet prune {APP}")
    assert status()["lock"] is None
    assert toll(load) == lost, load.ledger.problems[-5:]


def test_the_next_good_one_serves(load: Load) -> None:
    before, lost = serving(), toll(load)
    change_code()
    assert deploy_well() != before
    assert toll(load) == lost, load.ledger.problems[-5:]


def test_a_disk_that_is_full_when_it_is_switched_to(earlier: str, load: Load) -> None:
    before, lost = serving(), toll(load)
    with full(HOST, f"/var/lib/quintet/{APP}"):
        told = refused("quintet", "activate", APP, earlier)
        assert serving() == before
    assert "No space left on device" in told
    assert f"quintet prune {APP}" in told
    wait_for(f"the end of {earlier}", lambda: not runs(earlier))
    # What once served is not spoilt by a disk that was full.
    assert generations()[earlier]["state"] == "good"
    assert toll(load) == lost, load.ledger.problems[-5:]


def test_a_disk_that_is_full_when_the_switch_is_confirmed(earlier: str, load: Load) -> None:
    before, lost = serving(), toll(load)
    HOST.run("quintet", "activate", APP, earlier, "--confirm-within", "60")
    assert serving() == earlier
    with full(HOST, f"/var/lib/quintet/{APP}"):
        told = refused("quintet", "confirm", APP, earlier)
        assert serving() == earlier
    assert "No space left on device" in told
    assert f"quintet prune {APP}" in told
    # It is as before the attempt: it can be taken back as well as confirmed.
    assert status()["unconfirmed"]["before"] == before
    HOST.run("quintet", "undo", APP)
    assert serving() == before
    HOST.run("quintet", "activate", APP, earlier, "--confirm-within", "60")
    HOST.run("quintet", "confirm", APP, earlier)
    assert status()["unconfirmed"] is None
    assert serving() == earlier
    assert toll(load) == lost, load.ledger.problems[-5:]


@pytest.mark.parametrize("path", [f"/srv/{APP}", f"/var/lib/quintet/{APP}"], ids=["generations", "state"])
def test_a_full_disk_is_pruned(path: str, earlier: str, load: Load) -> None:
    before, lost = serving(), toll(load)
    change_code()
    other = deploy_well()
    with full(HOST, path):
        there = set(generations())
        HOST.run("quintet", "prune", APP, "--keep", "1")
        left = set(generations())
        assert serving() == other
    assert {before, other} <= left < there
    assert earlier not in left
    assert toll(load) == lost, load.ledger.problems[-5:]
