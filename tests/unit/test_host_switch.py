"""The host command's changes: activate, rollback, repair, drain, boot."""

import errno
import fcntl
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from host_support import PROBES, A, B, C, Machine, machine, serving
from quintet_host import deploy, drain, pool, probes, switch, units
from quintet_host.errors import QuintetError
from quintet_host.files import replace_link
from quintet_host.generation import load
from quintet_host.host import Host
from quintet_host.state import AppState, Hold, Store


@pytest.fixture
def here(tmp_path: Path) -> Machine:
    return serving(tmp_path)


def app_state(here: Machine) -> AppState:
    return here.host.store("shop").read()


def deployed(here: Machine) -> Host:
    """Return the host as a step of a deploy sees it."""
    return replace(here.host, token="T" * 24)


def begin(here: Machine, identifier: str) -> None:
    deploy.begin(deployed(here), "shop", identifier, None, build=False, take_over=False)


def test_first_activation_on_a_host_where_nothing_serves(tmp_path: Path) -> None:
    here = machine(tmp_path)
    here.add(A)
    done = switch.activate(here.host, "shop", A)
    assert (done.changed, done.generation, done.previous) == (True, A, None)
    assert here.current == A
    assert (tmp_path / "srv/shop/current").readlink() == Path("generations") / A
    assert here.state(A) == ("good", "")
    assert len(here.running(A)) == 4
    assert here.system.detached == []


def test_activation_in_its_order(here: Machine) -> None:
    done = switch.activate(here.host, "shop", B)
    assert here.current == B
    assert app_state(here) == AppState(previous=A, hold=None)
    assert done.previous == A
    assert [result.name for result in done.probes] == ["health", "socket"] * 2
    assert here.app.asked == [("health", "own"), ("socket", "own"), ("health", "edge"), ("socket", "edge")]
    units_directory = here.layout.generation("shop", B) / "units"
    assert here.system.calls == [
        ("tmpfiles", f"{units_directory}/tmpfiles.conf"),
        ("reload",),
        ("start", f"gunicorn-shop@{B}.socket", f"daphne-shop@{B}.socket"),
        ("start", f"gunicorn-shop@{B}.service", f"daphne-shop-1@{B}.service"),
        ("stop", "quintet-undo-shop-1.timer"),
    ]
    assert (here.layout.unit_links / f"gunicorn-shop@{B}.service").readlink().parent == units_directory
    assert here.system.detached == [("/usr/local/sbin/quintet", "drain", "shop", A, "--by", "me@desk")]
    assert len(here.running(A)) == 5, "A must go on until its drain stops it"
    assert here.log() == [("activate", "ok")]


def test_nothing_is_switched_before_the_probes_have_passed(here: Machine) -> None:
    seen = []

    def prober(probe: probes.Probe, endpoint: probes.Endpoint) -> probes.Result:
        seen.append((endpoint.is_edge, here.current))
        return here.app(probe, endpoint)

    switch.activate(replace(here.host, prober=prober), "shop", B)
    assert seen == [(False, A), (False, A), (True, B), (True, B)]


def test_a_unit_that_does_not_start(here: Machine) -> None:
    here.system.broken.add(f"daphne-shop-1@{B}.service")
    with pytest.raises(switch.ChangeError) as caught:
        switch.activate(here.host, "shop", B)
    assert caught.value.step == "start"
    message = str(caught.value)
    assert f"daphne-shop-1@{B}.service did not start" in message
    assert f"{A} serves as before" in message
    assert f"journal of daphne-shop-1@{B}.service" in message
    assert f"journalctl -u '*@{B}*'" in message
    assert here.current == A
    assert here.running(B) == []
    assert len(here.running(A)) == 4
    assert here.state(B)[0] == "failed"
    assert not list(here.layout.unit_links.glob(f"*{B}*"))
    assert here.log() == [("activate", "failed")]
    assert here.app.asked == []


def test_a_candidate_that_fails_a_probe_on_its_own_socket(here: Machine) -> None:
    here.app.sick.add((B, "own"))
    with pytest.raises(switch.ChangeError) as caught:
        switch.activate(here.host, "shop", B)
    assert caught.value.step == "probe"
    assert [(one.name, one.ok) for one in caught.value.probes] == [("health", False)]
    assert 'GET /healthz: got 503 {"status": "bad"} instead of 200' in caught.value.what
    assert here.current == A
    assert here.running(B) == []
    assert here.state(B)[0] == "failed"
    assert "GET /healthz: got 503" in here.state(B)[1]
    assert app_state(here) == AppState()


def test_a_failure_through_the_edge_goes_back(here: Machine) -> None:
    here.host.store("shop").write(AppState(previous=C, hold=None))
    here.app.sick.add((B, "edge"))
    with pytest.raises(switch.ChangeError) as caught:
        switch.activate(here.host, "shop", B)
    assert caught.value.step == "edge"
    assert here.current == A
    assert app_state(here) == AppState(previous=C)
    assert here.state(B)[0] == "failed"
    assert len(here.running(A)) == 4
    assert [command[1:4] for command in here.system.detached] == [("drain", "shop", B)], "people may be on it by now"
    assert 5 <= here.clock.slept < 6


def test_a_first_activation_that_fails_leaves_no_current(tmp_path: Path) -> None:
    here = machine(tmp_path)
    here.add(A)
    here.app.sick.add((A, "edge"))
    with pytest.raises(switch.ChangeError, match="failed the probe"):
        switch.activate(here.host, "shop", A)
    assert here.current is None
    assert not (tmp_path / "srv/shop/current").is_symlink()


def test_pooled_connections_of_the_edge_may_answer_for_a_while(here: Machine) -> None:
    here.app.pooled = (A, 40)
    done = switch.activate(here.host, "shop", B)
    assert here.current == B
    assert done.probes[2].seconds == pytest.approx(8.0)


def test_an_edge_that_stays_with_the_old_generation_fails(here: Machine) -> None:
    here.app.pooled = (A, 1000)
    with pytest.raises(switch.ChangeError, match=f"got generation {A} instead of {B}") as caught:
        switch.activate(here.host, "shop", B)
    assert caught.value.step == "edge"
    assert 15 <= here.clock.slept < 16
    assert here.current == A


def test_without_an_edge_there_is_no_probe_after_the_switch(here: Machine) -> None:
    (here.root / "etc/quintet/shop/probes.json").write_text(json.dumps({**PROBES, "edge": None}))
    switch.activate(here.host, "shop", B)
    assert here.app.asked == [("health", "own"), ("socket", "own")]


@pytest.mark.parametrize("content", [None, "", '{"edge": null}', '{"edge": null, "probes": [{"kind": "ftp"}]}'])
def test_missing_or_broken_probes_change_nothing(here: Machine, content: str | None) -> None:
    path = here.root / "etc/quintet/shop/probes.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(QuintetError, match="its probes can't be used"):
        switch.activate(here.host, "shop", B)
    assert here.system.calls == []
    assert here.state(B) == ("built", "")


@pytest.mark.parametrize(
    ("state", "words"),
    [("failed", "failed on .*: it broke"), ("building", "is not built to its end"), ("", "has no recorded state")],
)
def test_what_is_not_sealed_is_refused(here: Machine, state: str, words: str) -> None:
    here.add(C, state)
    with pytest.raises(QuintetError, match=words):
        switch.activate(here.host, "shop", C)
    assert here.system.calls == []
    assert here.current == A


def test_a_generation_that_is_not_here(here: Machine) -> None:
    with pytest.raises(QuintetError) as caught:
        switch.activate(here.host, "shop", C)
    assert f"there is no generation {C}" in caught.value.what
    assert f"{A}, {B}" in caught.value.where


def test_a_good_generation_that_fails_stays_a_way_back(here: Machine) -> None:
    here.host.store("shop").mark(B, "good", "", here.clock.now())
    here.app.sick.add((B, "own"))
    with pytest.raises(switch.ChangeError):
        switch.activate(here.host, "shop", B)
    state, reason = here.state(B)
    assert state == "good"
    assert "503" in reason


def test_an_interruption_takes_back_and_marks_nothing(here: Machine) -> None:
    def prober(_probe: probes.Probe, endpoint: probes.Endpoint) -> probes.Result:
        if endpoint.is_edge:
            raise KeyboardInterrupt
        return here.app(_probe, endpoint)

    with pytest.raises(KeyboardInterrupt):
        switch.activate(replace(here.host, prober=prober), "shop", B)
    assert here.current == A
    assert here.system.detached[0][1:4] == ("drain", "shop", B)
    assert here.state(B) == ("built", "")
    assert here.log() == [("activate", "interrupted")]


def test_an_unexpected_error_takes_back_too(here: Machine) -> None:
    def prober(probe: probes.Probe, endpoint: probes.Endpoint) -> probes.Result:
        if endpoint.is_edge:
            raise OSError(28, "No space left on device")
        return here.app(probe, endpoint)

    with pytest.raises(switch.ChangeError, match="No space left"):
        switch.activate(replace(here.host, prober=prober), "shop", B)
    assert here.current == A
    assert here.system.detached[0][1:4] == ("drain", "shop", B)


def test_a_drain_of_the_candidate_is_called_off(here: Machine) -> None:
    unit = units.drain_unit("shop", B)
    here.system.active[unit] = "active"
    switch.activate(here.host, "shop", B)
    assert here.system.calls[0] == ("stop", unit)
    assert unit not in here.system.active


def test_what_an_earlier_killed_change_left_running_is_drained_too(here: Machine) -> None:
    here.add(C, "good")
    here.system.active[f"gunicorn-shop@{C}.service"] = "active"
    switch.activate(here.host, "shop", B)
    assert [command[3] for command in here.system.detached] == [A, C]


def test_an_unproven_current_is_not_remembered_as_previous(here: Machine) -> None:
    here.host.store("shop").write(AppState(previous=A, hold=None))
    here.serve(B)
    here.host.store("shop").mark(B, "built", "", here.clock.now())
    here.add(C)
    assert switch.activate(here.host, "shop", C).previous == A


def test_the_lock_is_refused_with_its_holders_name(here: Machine) -> None:
    path = here.layout.state("shop") / "lock"
    path.write_text(json.dumps({"holder": "ann@ops", "since": "2026-11-23T19:59:00Z", "pid": 42, "command": "prune"}))
    with path.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(QuintetError, match=r"ann@ops since 2026-11-23T19:59:00Z \(quintet prune, process 42\)"):
            switch.activate(here.host, "shop", B)
    assert here.system.calls == []
    assert switch.activate(here.host, "shop", B).changed


def test_two_changes_at_once_are_one_too_many(here: Machine) -> None:
    refused: list[str] = []

    def prober(probe: probes.Probe, endpoint: probes.Endpoint) -> probes.Result:
        with pytest.raises(QuintetError) as caught:
            switch.activate(here.host, "shop", A)
        refused.append(caught.value.what)
        return here.app(probe, endpoint)

    switch.activate(replace(here.host, prober=prober), "shop", B)
    assert f"quintet activate shop {B}, process {os.getpid()}" in refused[0]


def test_the_lock_names_its_holder_while_it_is_held_only(here: Machine) -> None:
    path = here.layout.state("shop") / "lock"
    seen = []

    def prober(probe: probes.Probe, endpoint: probes.Endpoint) -> probes.Result:
        seen.append(json.loads(path.read_text()))
        return here.app(probe, endpoint)

    switch.activate(replace(here.host, prober=prober), "shop", B)
    assert seen[0] == {
        "holder": "me@desk",
        "since": "2026-11-23T20:00:00Z",
        "pid": os.getpid(),
        "command": f"activate shop {B}",
    }
    assert path.read_text() == ""


def test_the_switch_leaves_no_moment_without_a_link(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    link = here.layout.current("shop")
    steps: list[str] = []
    unlink, rename = Path.unlink, Path.replace

    def watched_unlink(path: Path, missing_ok: bool = False) -> None:
        assert path != link
        unlink(path, missing_ok)

    def watched_rename(path: Path, target: Path) -> Path:
        if target == link:
            assert path.parent == link.parent
            assert path.is_symlink()
            assert link.is_symlink()
            steps.append("rename")
        return rename(path, target)

    monkeypatch.setattr(Path, "unlink", watched_unlink)
    monkeypatch.setattr(Path, "replace", watched_rename)
    switch.activate(here.host, "shop", B)
    assert steps == ["rename"]


def test_current_and_running_is_no_change(here: Machine) -> None:
    done = switch.activate(here.host, "shop", A)
    assert (done.changed, done.probes) == (False, ())
    assert here.system.calls == []
    assert here.log() == []


def test_repair_starts_what_does_not_run(here: Machine) -> None:
    service = f"daphne-shop-1@{A}.service"
    here.system.active[service] = "failed"
    done = switch.activate(here.host, "shop", A)
    assert done.changed
    assert service in done.message
    assert here.app.asked == [("health", "own"), ("socket", "own")]
    assert here.system.active[service] == "active"
    assert here.log() == [("repair", "ok")]


def test_repair_of_a_socket_stops_the_service_that_runs_without_it(here: Machine) -> None:
    del here.system.active[f"daphne-shop@{A}.socket"]
    switch.activate(here.host, "shop", A)
    assert here.system.calls[1] == ("stop", f"daphne-shop-1@{A}.service")
    assert len(here.running(A)) == 4


def test_repair_that_fails_touches_nothing_else(here: Machine) -> None:
    here.system.active[f"daphne-shop-1@{A}.service"] = "failed"
    here.app.sick.add((A, "own"))
    with pytest.raises(switch.ChangeError, match="failed the probe"):
        switch.activate(here.host, "shop", A)
    assert here.current == A
    assert here.state(A) == ("good", "")
    assert len(here.running(A)) == 4


def test_a_switch_that_was_killed_is_completed(here: Machine) -> None:
    here.serve(B)
    here.host.store("shop").mark(B, "built", "", here.clock.now())
    done = switch.activate(here.host, "shop", B)
    assert done.changed
    assert here.state(B)[0] == "good"
    assert ("health", "edge") in here.app.asked
    assert [command[3] for command in here.system.detached] == [A]


def test_a_switch_to_a_good_one_that_was_killed_is_completed(here: Machine) -> None:
    here.serve(B)  # A runs on, and nothing drains it
    assert switch.activate(here.host, "shop", B).changed
    assert ("health", "edge") in here.app.asked
    assert [command[3] for command in here.system.detached] == [A]
    assert not switch.activate(here.host, "shop", B).changed


def test_rollback_leaves_a_hold(here: Machine) -> None:
    switch.activate(here.host, "shop", B)
    done = switch.roll_back(here.host, "shop")
    assert here.current == A
    assert (done.changed, done.generation, done.previous) == (True, A, B)
    assert app_state(here) == AppState(previous=B, hold=Hold(A, "2026-11-23T20:00:00Z", "me@desk"))
    assert f"site.yml now keeps {A}" in done.message
    assert f"quintet activate shop {B}" in done.message
    assert here.log()[-1] == ("rollback", "ok")


def test_a_second_rollback_does_not_bring_the_bad_one_back(here: Machine) -> None:
    switch.activate(here.host, "shop", B)
    switch.roll_back(here.host, "shop")
    with pytest.raises(QuintetError) as caught:
        switch.roll_back(here.host, "shop")
    assert "is rolled back already" in caught.value.what
    assert B in caught.value.remedy
    assert here.current == A


def test_rollback_to_a_named_generation(here: Machine) -> None:
    here.add(C, "good")
    assert switch.roll_back(here.host, "shop", C).generation == C


def test_rollback_without_a_previous_one(here: Machine) -> None:
    with pytest.raises(QuintetError) as caught:
        switch.roll_back(here.host, "shop")
    assert "no earlier good generation" in caught.value.what
    assert "no other good generation" in caught.value.remedy
    assert here.current == A


def test_rollback_before_the_first_switch(tmp_path: Path) -> None:
    here = machine(tmp_path)
    here.add(A)
    with pytest.raises(QuintetError, match="serves nothing yet"):
        switch.roll_back(here.host, "shop")


@pytest.mark.parametrize(("state", "words"), [("built", "never served"), ("failed", "it broke")])
def test_rollback_only_to_what_was_good(here: Machine, state: str, words: str) -> None:
    here.add(C, state)
    with pytest.raises(QuintetError, match=words):
        switch.roll_back(here.host, "shop", C)
    assert here.current == A


def test_rollback_to_what_serves_is_refused(here: Machine) -> None:
    with pytest.raises(QuintetError, match="already serves"):
        switch.roll_back(here.host, "shop", A)


@pytest.mark.parametrize("others_follow", [True, False])
def test_the_hold_of_a_host_that_serves_it_already_waits_for_the_other_hosts(
    here: Machine, *, others_follow: bool
) -> None:
    for identifier in (A, B):
        (here.layout.generation("shop", identifier) / "static/app.css").write_text(identifier)
    switch.activate(here.host, "shop", B)
    switch.activate(here.host, "shop", A)
    before, pooled = app_state(here), pool._read(here.host, "shop")
    here.clock.sleep(7)
    begin(here, A)
    run = deployed(here)
    assert switch.roll_back(run, "shop", A, confirm_within=300).changed
    held = app_state(here)
    assert (held.hold, held.previous) == (Hold(A, here.host.now(), "me@desk"), before.previous)
    assert held.unconfirmed
    assert held.unconfirmed.until == "2026-11-23T20:05:07Z"
    if others_follow:
        switch.confirm(run, "shop", A)
        assert app_state(here) == replace(held, unconfirmed=None)
    else:
        assert switch.undo(run, "shop", A, "app2 could not follow").changed
        assert app_state(here) == before
    # It has served all the time, so the age of its files does not count.
    assert A in pooled
    assert here.current == A
    assert here.running(A)
    assert pool._read(here.host, "shop") == pooled


def test_rollback_across_migrations_has_to_be_asked_for(here: Machine) -> None:
    here.add(C, migrations={"chat": ["0001_initial", "0002_topic"], "shop": ["0001_initial"]})
    switch.activate(here.host, "shop", C)
    with pytest.raises(QuintetError, match=r"chat\.0002_topic, shop\.0001_initial") as caught:
        switch.roll_back(here.host, "shop")
    assert "--accept-migrations" in caught.value.remedy
    assert here.current == C
    assert switch.roll_back(here.host, "shop", accept_migrations=True).generation == A


@pytest.mark.parametrize("identifier", [A, B])
def test_activate_ends_a_hold_unless_told_to_keep_it(here: Machine, identifier: str) -> None:
    hold = Hold(A, "2026-11-23T20:00:00Z", "me@desk")
    here.host.store("shop").write(AppState(previous=B, hold=hold))
    switch.activate(here.host, "shop", A, keep_hold=True)
    assert app_state(here).hold == hold
    assert switch.activate(here.host, "shop", identifier).changed
    assert app_state(here).hold is None


def test_a_failed_activate_keeps_the_hold(here: Machine) -> None:
    hold = Hold(A, "2026-11-23T20:00:00Z", "me@desk")
    here.host.store("shop").write(AppState(previous=None, hold=hold))
    here.app.sick.add((B, "edge"))
    with pytest.raises(switch.ChangeError):
        switch.activate(here.host, "shop", B)
    assert app_state(here).hold == hold


def test_drain_waits_then_stops_all_as_one(here: Machine) -> None:
    switch.activate(here.host, "shop", B)
    here.system.calls.clear()
    run = here.layout.run("shop", A)
    run.mkdir(parents=True)
    drain.drain(here.host, "shop", A)
    assert here.clock.slept == 15
    sockets, services = [f"gunicorn-shop@{A}", f"daphne-shop@{A}"], [f"gunicorn-shop@{A}", f"daphne-shop-1@{A}"]
    expected = [f"{name}.socket" for name in sockets] + [f"{name}.service" for name in services]
    assert here.system.calls == [("stop", *expected), ("reload",)]
    assert not list(here.layout.unit_links.glob(f"*{A}*"))
    assert len(list(here.layout.unit_links.iterdir())) == 4
    assert not run.exists()


def test_drain_of_what_does_not_run_does_not_wait(here: Machine) -> None:
    drain.drain(here.host, "shop", B)
    assert here.clock.slept == 0


def test_drain_refuses_what_serves(here: Machine) -> None:
    with pytest.raises(QuintetError, match="serves and is not drained"):
        drain.drain(here.host, "shop", A)


def test_drain_looks_again_after_its_wait(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    here.serve(B)

    def sleep(seconds: float) -> None:
        replace_link(here.layout.current("shop"), f"generations/{A}")

    monkeypatch.setattr(here.clock, "sleep", sleep)
    with pytest.raises(QuintetError, match="serves and is not drained"):
        drain.drain(here.host, "shop", A)
    assert len(here.running(A)) == 4


def test_boot_starts_what_current_names(here: Machine) -> None:
    for link in here.layout.unit_links.iterdir():  # as after a reboot
        link.unlink()
    here.system.active.clear()
    here.system.loaded.clear()
    assert drain.boot(here.host, "shop") == f"shop: generation {A} runs."
    assert len(here.running(A)) == 4
    assert here.system.calls[:2] == [
        ("tmpfiles", f"{here.layout.generation('shop', A)}/units/tmpfiles.conf"),
        ("reload",),
    ]


def test_boot_without_a_current_generation_is_no_failure(tmp_path: Path) -> None:
    assert "nothing to start" in drain.boot(machine(tmp_path).host, "shop")


def test_boot_after_a_loss_of_power(here: Machine) -> None:
    state = here.layout.state("shop")
    for path in (state / f"generations/{A}.json", state / "app.json", state / "lock"):
        path.write_bytes(b"\0" * 40)
    (state / "log").write_bytes(b'{"time": "20')
    here.system.active.clear()
    drain.boot(here.host, "shop")
    assert len(here.running(A)) == 4
    assert here.log() == [("boot", "ok")]
    # And a later run proves it anew rather than be stopped by the lost state.
    assert switch.activate(here.host, "shop", A).changed
    assert here.state(A) == ("good", "")


def test_boot_tells_why_a_unit_did_not_start(here: Machine) -> None:
    here.system.active.clear()
    here.system.broken.add(f"gunicorn-shop@{A}.service")
    with pytest.raises(QuintetError, match="did not start") as caught:
        drain.boot(here.host, "shop")
    assert f"journal of gunicorn-shop@{A}.service" in str(caught.value)


def test_a_rollback_asks_what_the_earlier_generation_was_asked(here: Machine) -> None:
    """The next release brings a probe that the one before it can't answer."""
    path = here.layout.configuration("shop") / "probes.json"
    switch.activate(here.host, "shop", B)
    later = {**PROBES["probes"][0], "name": "later", "path": "/later"}
    path.write_text(json.dumps({**PROBES, "probes": [*PROBES["probes"], later]}))
    here.add(C)
    begin(here, C)
    switch.activate(deployed(here), "shop", C)
    deploy.unlock(deployed(here), "shop")
    assert ("later", "own") in here.app.asked
    here.app.asked.clear()
    done = switch.roll_back(here.host, "shop")
    assert (done.generation, here.current) == (B, B)
    assert {name for name, _ in here.app.asked} == {"health", "socket"}
    # As long as it is held; then it is asked what the inventory asks.
    results = switch.run_probes(here.host, load(here.layout, "shop", B), through_edge=True)
    assert {result.name for result in results} == {"health", "socket"}
    switch.activate(here.host, "shop", B)
    results = switch.run_probes(here.host, load(here.layout, "shop", B), through_edge=False)
    assert {result.name for result in results} == {"health", "socket", "later"}


def test_one_that_drains_and_fails_goes_on_draining(here: Machine) -> None:
    switch.activate(here.host, "shop", B)
    here.app.sick.add((A, "own"))
    here.system.detached.clear()
    with pytest.raises(switch.ChangeError):
        switch.activate(here.host, "shop", A)
    assert here.current == B
    assert here.system.detached == [("/usr/local/sbin/quintet", "drain", "shop", A, "--by", "me@desk")]
    assert here.running(A), "Nginx may still have connections to it"


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_switch_that_can_t_be_recorded_as_good_is_taken_back(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Store.mark

    def mark(store: Store, identifier: str, state: str, *rest: Any) -> bool:
        if state == "good":
            full_disk()
        return real(store, identifier, state, *rest)

    monkeypatch.setattr(Store, "mark", mark)
    with pytest.raises(switch.ChangeError) as caught:
        switch.activate(here.host, "shop", B)
    assert "No space left on device" in caught.value.what
    assert "quintet prune shop" in caught.value.remedy
    assert here.current == A
    assert here.log() == [("activate", "failed")]
    assert app_state(here) == AppState()


def test_a_static_pool_that_can_t_be_written_undoes_no_switch(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "left", full_disk)
    assert switch.activate(here.host, "shop", B).changed
    assert here.current == B
    assert here.log() == [("activate", "ok")]


def test_a_failed_one_is_marked_even_if_the_state_can_t_be_put_back(
    here: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.app.sick.add((B, "edge"))
    real, calls = Store.write, []

    def write(store: Store, state: AppState) -> None:
        calls.append(state)
        if len(calls) > 1:
            full_disk()
        real(store, state)

    monkeypatch.setattr(Store, "write", write)
    with pytest.raises(switch.ChangeError):
        switch.activate(here.host, "shop", B)
    assert here.current == A
    assert here.state(B)[0] == "failed"


def test_a_run_that_rolls_back_all_hosts_holds_one_that_is_there_already(here: Machine) -> None:
    begin(here, A)
    done = switch.roll_back(deployed(here), "shop", A)
    assert (done.changed, here.current) == (True, A)
    hold = app_state(here).hold
    assert hold is not None
    assert hold.generation == A
    assert here.log() == [("rollback", "ok")]


def test_each_probe_goes_to_the_port_of_its_scheme(here: Machine) -> None:
    secure = {**PROBES["probes"][0], "name": "secure", "scheme": "https"}
    edge = {"addresses": ["127.0.0.1"], "port": 80, "tls_port": 443}
    path = here.layout.configuration("shop") / "probes.json"
    path.write_text(json.dumps({"edge": edge, "probes": [secure, PROBES["probes"][1]]}))
    ways = probes.load(here.layout, "shop").through_edge
    assert [(probe.name, way.port, way.tls) for probe, way in ways] == [("secure", 443, True), ("socket", 80, False)]
    path.write_text(json.dumps({"edge": {**edge, "port": None}, "probes": [secure, PROBES["probes"][1]]}))
    ways = probes.load(here.layout, "shop").through_edge
    assert [probe.name for probe, _ in ways] == ["secure"], "plain HTTP is redirected"


def test_a_probe_over_https_is_not_asked_through_a_plain_edge(here: Machine) -> None:
    """Nginx would tell the app that it came over HTTP, and the app would redirect it."""
    secure = {**PROBES["probes"][0], "name": "secure", "scheme": "https"}
    path = here.layout.configuration("shop") / "probes.json"
    path.write_text(json.dumps({**PROBES, "probes": [secure, PROBES["probes"][1]]}))
    switch.activate(here.host, "shop", B)
    assert here.app.asked == [("secure", "own"), ("socket", "own"), ("socket", "edge")]
    here.app.asked.clear()
    switch.run_probes(here.host, load(here.layout, "shop", B), through_edge=True)
    assert here.app.asked == [("secure", "own"), ("socket", "own"), ("socket", "edge")]
