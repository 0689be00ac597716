"""The host command's part in a deploy: its lock, the switch that has to be confirmed, workers and timers, the failure."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from host_support import A, B, C, D, Machine, machine, serving
from quintet_host import deploy, drain, hooks, lock, migrate, pool, switch
from quintet_host.errors import QuintetError
from quintet_host.files import replace_link
from quintet_host.generation import Generation
from quintet_host.host import Host
from quintet_host.state import AppState, Hold, Store
from quintet_host.system import Answer

CONTROLLER = {"host": "desk", "pid": 4711}


@pytest.fixture
def here(tmp_path: Path) -> Machine:
    return serving(tmp_path)


def holding(here: Machine, token: str, by: str = "me@desk") -> Host:
    """Return the host as a step of a deploy sees it."""
    return replace(here.host, token=token, by=by)


def begin(here: Machine, token: str = "one", identifier: str = C, **options: Any) -> str:
    options = {"build": False, "take_over": False, **options}
    return deploy.begin(holding(here, token), "shop", identifier, CONTROLLER, **options)


def app_state(here: Machine) -> AppState:
    return here.host.store("shop").read()


def worker(identifier: str, name: str = "mail") -> str:
    return f"worker-shop-{name}-1@{identifier}.service"


def timer(identifier: str) -> str:
    return f"timer-shop-clean@{identifier}.timer"


# ---- the lock ----


def test_a_second_deploy_is_refused_naming_the_first(here: Machine) -> None:
    begin(here)
    with pytest.raises(QuintetError) as caught:
        deploy.begin(holding(here, "two", "ann@ops"), "shop", C, None, build=True, take_over=False)
    assert f"me@desk since 2026-11-23T20:00:00Z (deploy shop {C}, last heard of" in caught.value.what
    assert "quintet unlock shop" in caught.value.remedy
    assert here.state(C) == ("unknown", "")


def test_a_second_deploy_names_the_first_also_while_a_command_of_it_runs(here: Machine) -> None:
    begin(here)
    with (
        lock.locked(holding(here, "one"), "shop", f"activate shop {C}"),
        pytest.raises(QuintetError, match=f"is being changed by me@desk since .* \\(deploy shop {C}, last heard of"),
    ):
        deploy.begin(holding(here, "two", "ann@ops"), "shop", C, None, build=True, take_over=False)


@pytest.mark.parametrize(
    "change",
    [
        lambda host: switch.activate(host, "shop", B),
        lambda host: switch.roll_back(host, "shop"),
        lambda host: deploy.migrate_database(host, "shop", B),
        lambda host: deploy.fail(host, "shop", B, ""),
    ],
)
def test_who_shows_no_token_is_refused_during_a_deploy(here: Machine, change: Callable[[Host], Any]) -> None:
    begin(here)
    with pytest.raises(QuintetError, match="is being changed by me@desk"):
        change(here.host)
    assert here.system.calls == []
    assert here.state(B) == ("built", "")


def test_the_deploy_itself_goes_on_and_is_heard_of(here: Machine) -> None:
    begin(here)
    here.clock.sleep(600)
    assert switch.activate(holding(here, "one"), "shop", B).changed
    held = lock.read_lease(here.host, "shop")
    assert held is not None
    assert (held.since, held.heard) == ("2026-11-23T20:00:00Z", "2026-11-23T20:10:00Z")
    assert held.controller == CONTROLLER


def test_a_lock_that_nobody_was_heard_of_for_an_hour_is_none(here: Machine) -> None:
    begin(here)
    here.clock.sleep(3599)
    with pytest.raises(QuintetError, match="is being changed"):
        begin(here, "two")
    here.clock.sleep(2)
    begin(here, "two")
    with pytest.raises(QuintetError, match="is being changed"):
        switch.activate(holding(here, "one"), "shop", B)


def test_a_step_that_took_long_loses_no_lock_that_nobody_has_taken(here: Machine) -> None:
    begin(here)
    here.clock.sleep(7200)
    assert switch.activate(holding(here, "one"), "shop", B).changed


def test_taking_over_is_said_and_logged(here: Machine) -> None:
    begin(here)
    assert f"over from me@desk since 2026-11-23T20:00:00Z (deploy shop {C}" in begin(here, "two", take_over=True)
    assert here.log() == [("lock taken over", "ok")]
    with pytest.raises(QuintetError, match="is being changed"):
        switch.activate(holding(here, "one"), "shop", B)


def test_a_deploy_whose_lock_is_gone_does_not_go_on(here: Machine) -> None:
    begin(here)
    assert deploy.unlock(here.host, "shop") is not None
    assert here.log() == [("lock broken", "ok")]
    with pytest.raises(QuintetError, match="the lock of this deploy is gone"):
        switch.activate(holding(here, "one"), "shop", B)
    assert here.current == A


def test_unlock_by_its_own_token_is_no_news_and_spares_others(here: Machine) -> None:
    begin(here)
    assert deploy.unlock(holding(here, "two"), "shop") is None
    assert deploy.unlock(holding(here, "one"), "shop") is not None
    assert deploy.unlock(holding(here, "one"), "shop") is None
    assert here.log() == []


def test_the_lock_is_where_no_reboot_keeps_it_and_for_root_alone(here: Machine) -> None:
    begin(here)
    path = here.root / "run/quintet/shop/deploy.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o755, "Nginx passes through it to the sockets"
    path.unlink()
    begin(here, "two")


def test_begin_clears_what_an_unfinished_build_left(here: Machine) -> None:
    path = here.add(C, "building")
    here.system.active[f"gunicorn-shop@{C}.service"] = "active"
    begin(here, build=True)
    assert not path.exists()
    assert here.running(C) == []
    assert here.state(C)[0] == "building"


def test_begin_never_clears_what_serves(here: Machine) -> None:
    with pytest.raises(QuintetError, match="serves; it can't become building"):
        begin(here, identifier=A, build=True)
    assert here.layout.generation("shop", A).is_dir()
    assert lock.read_lease(here.host, "shop") is None


# ---- confirm and undo ----


def test_an_unconfirmed_switch_is_guarded_before_it_is_made(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def recording_replace_link(path: Path, target: str) -> None:
        seen.append((dict(here.system.later), app_state(here).unconfirmed))
        replace_link(path, target)

    monkeypatch.setattr("quintet_host.switch.replace_link", recording_replace_link)
    begin(here)
    switch.activate(holding(here, "one"), "shop", B, confirm_within=120)
    [(later, unconfirmed)] = seen
    seconds, command = later["quintet-undo-shop-1"]
    assert seconds == 120
    assert command[:4] == ("/usr/local/sbin/quintet", "undo", "shop", B)
    assert unconfirmed is not None
    assert (unconfirmed.generation, unconfirmed.before, unconfirmed.until) == (B, A, "2026-11-23T20:02:00Z")


def test_until_it_is_confirmed_the_old_one_stays_up(here: Machine) -> None:
    begin(here)
    switch.activate(holding(here, "one"), "shop", B, confirm_within=120)
    assert here.system.detached == []
    assert here.state(B)[0] == "built", "nobody may roll back to what is not confirmed"
    done = switch.confirm(holding(here, "one"), "shop", B)
    assert done.changed
    assert here.state(B)[0] == "good"
    assert [command[1:4] for command in here.system.detached] == [("drain", "shop", A)]
    assert app_state(here) == AppState(previous=A)
    assert not any("quintet-undo" in unit for unit in here.system.active)
    assert here.log() == [("activate", "ok"), ("confirm", "ok")]
    assert not switch.confirm(holding(here, "one"), "shop", B).changed


def test_a_switch_that_nobody_confirms_goes_back(here: Machine) -> None:
    here.host.store("shop").write(AppState(previous=C, hold=Hold(A, "2026-11-23T19:00:00Z", "ann@ops")))
    before = app_state(here)
    begin(here)
    switch.activate(holding(here, "one"), "shop", B, confirm_within=120)
    assert app_state(here).hold is None
    done = switch.undo(here.host, "shop", B, "nobody confirmed it within 120 s")
    assert (done.changed, done.generation) == (True, A)
    assert here.current == A
    assert app_state(here) == before
    assert here.state(B) == ("built", "its switch was taken back: nobody confirmed it within 120 s")
    assert [command[1:4] for command in here.system.detached] == [("drain", "shop", B)], "people may be on it"
    assert lock.read_lease(here.host, "shop") is None
    assert here.log()[-1] == ("undo", "ok")
    with pytest.raises(QuintetError, match="does not serve any more") as caught:
        switch.confirm(holding(here, "one"), "shop", B)
    assert "nobody confirmed it within 120 s" in caught.value.where
    assert not switch.undo(here.host, "shop", B, "").changed


def test_an_undo_leaves_the_lock_of_another_deploy(here: Machine) -> None:
    begin(here)
    switch.activate(holding(here, "one"), "shop", B, confirm_within=120)
    begin(here, "two", take_over=True)
    switch.undo(here.host, "shop", B, "late")
    held = lock.read_lease(here.host, "shop")
    assert held is not None
    assert held.token == "two"


def test_an_undo_by_another_deploy_takes_nothing_back(here: Machine) -> None:
    begin(here)
    switch.activate(holding(here, "one"), "shop", B, confirm_within=120)
    assert not switch.undo(holding(here, "two"), "shop", None, "web2 failed").changed
    assert here.current == B


def test_an_undo_starts_what_was_stopped_of_the_old_one(here: Machine) -> None:
    switch.activate(here.host, "shop", B, confirm_within=120)
    del here.system.active[f"gunicorn-shop@{A}.service"]
    switch.undo(here.host, "shop", None, "asked for")
    assert len([unit for unit in here.running(A) if not unit.startswith("quintet-")]) == 4


def test_an_undo_that_can_t_go_back_leaves_what_serves(here: Machine) -> None:
    switch.activate(here.host, "shop", B, confirm_within=120)
    here.system.active[f"gunicorn-shop@{A}.service"] = "failed"
    here.system.broken.add(f"gunicorn-shop@{A}.service")
    with pytest.raises(QuintetError, match="did not start"):
        switch.undo(here.host, "shop", None, "asked for")
    assert here.current == B
    assert len(here.running(B)) == 4
    assert here.log()[-1] == ("undo", "failed")


def test_a_switch_without_a_controller_is_confirmed_at_once_but_was_guarded(here: Machine) -> None:
    switch.activate(here.host, "shop", B)
    assert here.system.later["quintet-undo-shop-1"][0] == switch.OWN_CONFIRM_SECONDS
    assert app_state(here) == AppState(previous=A)
    assert not any("quintet-undo" in unit for unit in here.system.active)


def test_the_controller_s_time_begins_when_the_host_has_done_its_part(
    here: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(_host: Host, _generation: Generation, moment: str, _environment: Any = None) -> None:
        if moment == "after_switch":
            here.clock.sleep(500)
            # The time that was set before the switch has come: the undo waits for the lock.
            here.system.active["quintet-undo-shop-1.service"] = "active"

    monkeypatch.setattr(hooks, "run", slow)
    switch.activate(here.host, "shop", B, confirm_within=120)
    unconfirmed = app_state(here).unconfirmed
    assert unconfirmed is not None
    assert unconfirmed.until == "2026-11-23T20:10:20Z"
    assert [unit for unit in here.system.active if "quintet-undo" in unit] == ["quintet-undo-shop-2.timer"]


def test_a_guard_is_replaced_by_the_next_without_a_gap(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    switch.activate(here.host, "shop", B, confirm_within=120)
    stop = here.system.stop

    def guards() -> list[str]:
        return [unit for unit in here.system.active if "quintet-undo" in unit]

    def watched_stop(names: Sequence[str]) -> Answer:
        assert len(guards()) == 2
        return stop(names)

    assert len(guards()) == 1
    monkeypatch.setattr(here.system, "stop", watched_stop)
    switch.activate(here.host, "shop", B, confirm_within=120)
    assert len(guards()) == 1


def test_an_undo_that_was_killed_after_its_rename_is_completed(here: Machine) -> None:
    add_with_background(here, C, "good")
    here.host.store("shop").write(AppState(previous=A))
    switch.activate(here.host, "shop", C)
    add_with_background(here, D)
    switch.activate(here.host, "shop", D, confirm_within=60)
    replace_link(here.layout.current("shop"), f"generations/{C}")  # and there it was killed
    assert switch.undo(here.host, "shop", None, "once more").changed
    assert here.system.active[worker(C)] == "active"
    assert worker(D) not in here.system.active
    assert app_state(here) == AppState(previous=A)


def test_activating_what_an_undo_was_going_back_to(here: Machine) -> None:
    here.host.store("shop").write(AppState(previous=C))
    switch.activate(here.host, "shop", B, confirm_within=60)
    replace_link(here.layout.current("shop"), f"generations/{A}")
    switch.activate(here.host, "shop", A)
    assert app_state(here) == AppState(previous=C), "not A itself"
    assert here.state(B)[0] == "built"


def test_a_rollback_before_the_confirmation_goes_back_and_holds(here: Machine) -> None:
    switch.activate(here.host, "shop", B, confirm_within=60)
    done = switch.roll_back(here.host, "shop")
    assert (done.changed, here.current) == (True, A)
    assert app_state(here).hold == Hold(A, "2026-11-23T20:00:00Z", "me@desk")
    assert app_state(here).unconfirmed is None
    assert here.log()[-2:] == [("undo", "ok"), ("rollback", "ok")]


def test_a_first_switch_has_nothing_to_go_back_to(tmp_path: Path) -> None:
    here = machine(tmp_path)
    here.add(A)
    switch.activate(here.host, "shop", A, confirm_within=60)
    done = switch.undo(here.host, "shop", None, "late")
    assert not done.changed
    assert "nothing to go back to" in done.message
    assert here.current == A


def test_boot_takes_an_unconfirmed_switch_back(here: Machine) -> None:
    switch.activate(here.host, "shop", B, confirm_within=120)
    here.system.active.clear()
    assert drain.boot(here.host, "shop") == f"shop: generation {A} runs."
    assert here.current == A
    assert here.running(B) == []
    assert app_state(here) == AppState()


def test_the_next_run_completes_what_a_killed_one_left(here: Machine) -> None:
    begin(here)
    switch.activate(holding(here, "one"), "shop", B, confirm_within=120)
    begin(here, "two", take_over=True)
    here.clock.sleep(60)
    done = switch.activate(holding(here, "two"), "shop", B, confirm_within=120)
    assert done.changed
    unconfirmed = app_state(here).unconfirmed
    assert unconfirmed is not None
    assert (unconfirmed.until, unconfirmed.token) == ("2026-11-23T20:03:00Z", "two")
    switch.confirm(holding(here, "two"), "shop", B)
    assert app_state(here) == AppState(previous=A)
    assert here.state(B)[0] == "good"


def test_the_next_run_with_other_code_goes_back_first(here: Machine) -> None:
    here.add(C)
    switch.activate(here.host, "shop", B, confirm_within=120)
    here.app.sick.add((C, "own"))
    with pytest.raises(switch.ChangeError):
        switch.activate(here.host, "shop", C)
    assert here.current == A
    here.app.sick.clear()
    here.host.store("shop").mark(C, "built", "", here.clock.now())
    switch.activate(here.host, "shop", C)
    assert app_state(here) == AppState(previous=A)


def test_a_rollback_that_waits_for_its_confirmation_keeps_its_hold_only_then(here: Machine) -> None:
    switch.activate(here.host, "shop", B)
    switch.roll_back(here.host, "shop", confirm_within=60)
    assert here.current == A
    switch.undo(here.host, "shop", None, "another host failed")
    assert here.current == B
    assert app_state(here) == AppState(previous=A)
    assert here.state(A)[0] == "good", "it served long before"


def test_rollback_to_a_release(here: Machine) -> None:
    here.add(C, "good")
    assert switch.roll_back(here.host, "shop", C[:8]).generation == C
    with pytest.raises(QuintetError, match=f"no good generation of release {B[:8]}") as caught:
        switch.roll_back(here.host, "shop", B[:8])
    assert B in caught.value.where


def test_rollback_knows_what_was_migrated_by_a_candidate_that_failed(here: Machine) -> None:
    switch.activate(here.host, "shop", B)
    (here.layout.state("shop") / "migrations.json").write_text('{"chat": ["0001_initial", "0007_late"]}')
    with pytest.raises(QuintetError, match=r"chat\.0007_late"):
        switch.roll_back(here.host, "shop")


# ---- workers and timers ----


def add_with_background(here: Machine, identifier: str, state: str = "built") -> None:
    here.add(identifier, state, workers=[worker(identifier)], timers=[timer(identifier)])


def test_workers_change_over_at_the_switch(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    add_with_background(here, C)
    add_with_background(here, D)
    switch.activate(here.host, "shop", C)
    here.system.active[f"timer-shop-clean@{C}.service"] = "active"  # its job runs just now
    here.system.calls.clear()
    at: list[tuple[str, str | None]] = []
    start, stop = here.system.start, here.system.stop

    def recording_start(names: Sequence[str]) -> Answer:
        at.append((f"start {names[0]}", here.current))
        return start(names)

    def recording_stop(names: Sequence[str]) -> Answer:
        at.append((f"stop {names[0]}", here.current))
        return stop(names)

    monkeypatch.setattr(here.system, "start", recording_start)
    monkeypatch.setattr(here.system, "stop", recording_stop)
    switch.activate(here.host, "shop", D)
    assert [entry for entry in at if "worker" in entry[0] or "timer-shop" in entry[0]] == [
        (f"stop {timer(C)}", D),
        (f"stop timer-shop-clean@{C}.service", D),
        (f"start {worker(D)}", D),
        (f"start {timer(D)}", D),
    ]
    assert worker(C) not in here.system.active
    assert here.system.active[worker(D)] == "active"


def test_a_worker_that_dies_again_and_again_takes_all_back(here: Machine) -> None:
    add_with_background(here, C)
    add_with_background(here, D)
    switch.activate(here.host, "shop", C)
    here.system.dying.add(worker(D))
    with pytest.raises(switch.ChangeError, match="died again and again") as caught:
        switch.activate(here.host, "shop", D)
    assert caught.value.step == "workers"
    assert here.current == C
    assert here.system.active[worker(C)] == "active"
    assert here.system.active[timer(C)] == "active"
    assert worker(D) not in here.system.active
    assert here.state(D)[0] == "failed"


def test_a_worker_that_stumbles_once_may_stay(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    add_with_background(here, C)
    counts = iter([0, 1, *[1] * 30])
    monkeypatch.setattr(here.system, "restarts", lambda _names: {worker(C): next(counts)})
    assert switch.activate(here.host, "shop", C).changed
    assert 5 <= here.clock.slept < 7


def test_how_long_a_worker_must_stay_is_the_apps_to_say(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    here.layout.settings("shop").write_text('{"worker_stay_seconds": 20}')
    add_with_background(here, C)
    # It ends twice, in the end after longer than others must stay.
    counts = iter([0, *[0] * 20, *[1] * 5, *[2] * 100])
    monkeypatch.setattr(here.system, "restarts", lambda _names: {worker(C): next(counts)})
    with pytest.raises(switch.ChangeError, match="died again and again"):
        switch.activate(here.host, "shop", C)
    assert 10 < here.clock.slept < 20


def test_workers_come_back_when_the_edge_fails(here: Machine) -> None:
    add_with_background(here, C)
    add_with_background(here, D)
    switch.activate(here.host, "shop", C)
    here.app.sick.add((D, "edge"))
    with pytest.raises(switch.ChangeError):
        switch.activate(here.host, "shop", D)
    assert here.system.active[worker(C)] == "active"
    assert worker(D) not in here.system.active


def test_an_interruption_while_workers_stop_starts_them_again(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    add_with_background(here, C)
    add_with_background(here, D)
    switch.activate(here.host, "shop", C)
    stop = here.system.stop

    def interrupted(names: Sequence[str]) -> Answer:
        answer = stop(names)
        if worker(C) in names:
            raise KeyboardInterrupt
        return answer

    monkeypatch.setattr(here.system, "stop", interrupted)
    with pytest.raises(KeyboardInterrupt):
        switch.activate(here.host, "shop", D)
    assert here.current == C
    assert here.system.active[worker(C)] == "active"
    assert here.system.active[timer(C)] == "active"


def test_a_worker_that_does_not_come_to_rest_ends_the_wait(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    add_with_background(here, C)
    states = here.system.states
    monkeypatch.setattr(
        here.system,
        "states",
        lambda names: {**states(names), **({worker(C): "inactive"} if worker(C) in names else {})},
    )
    with pytest.raises(switch.ChangeError, match="did not stay"):
        switch.activate(here.host, "shop", C)
    assert here.clock.slept < 70


def test_a_worker_that_does_not_stop_lets_no_other_start(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    add_with_background(here, C)
    add_with_background(here, D)
    switch.activate(here.host, "shop", C)
    stop = here.system.stop
    monkeypatch.setattr(
        here.system, "stop", lambda names: Answer(False, "timed out") if worker(C) in names else stop(names)
    )
    with pytest.raises(switch.ChangeError, match="did not stop"):
        switch.activate(here.host, "shop", D)
    assert here.current == C
    assert worker(D) not in here.system.active


def test_an_undo_takes_workers_back(here: Machine) -> None:
    add_with_background(here, C)
    add_with_background(here, D)
    switch.activate(here.host, "shop", C)
    switch.activate(here.host, "shop", D, confirm_within=60)
    switch.undo(here.host, "shop", None, "asked for")
    assert here.system.active[worker(C)] == "active"
    assert worker(D) not in here.system.active


def test_boot_and_repair_start_workers_too(here: Machine) -> None:
    add_with_background(here, C)
    switch.activate(here.host, "shop", C)
    here.system.active.clear()
    drain.boot(here.host, "shop")
    assert here.system.active[worker(C)] == "active"
    del here.system.active[worker(C)]
    assert worker(C) in switch.activate(here.host, "shop", C).message
    assert here.system.active[worker(C)] == "active"


# ---- hooks, migrations, static files: called at the right moments ----


@pytest.fixture
def moments(here: Machine, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str | None]]:
    """Record (moment, generation, current) of each call of hooks; a moment in `failing` fails."""
    seen: list[tuple[str, str, str | None]] = []

    def run(_host: Host, generation: Generation, moment: str, environment: dict[str, str] | None = None) -> None:
        seen.append((moment, generation.identifier, here.current))
        if moment in generation.hooks:
            raise QuintetError(f"shop: the hook 'x' ({moment}) failed.", "", "", [])
        if environment:
            seen.append((environment["QUINTET_STEP"], environment["QUINTET_FAILED_GENERATION"], here.current))

    monkeypatch.setattr(hooks, "run", run)
    return seen


def fail_at(here: Machine, identifier: str, moment: str) -> None:
    path = here.layout.generation("shop", identifier) / "generation.json"
    value = json.loads(path.read_text())
    value["hooks"] = {moment: [{"name": "x", "command": "false", "timeout_seconds": 5}]}
    path.write_text(json.dumps(value))


def test_hooks_at_their_moments(here: Machine, moments: list[Any]) -> None:
    switch.activate(here.host, "shop", B)
    assert moments == [("before_switch", B, A), ("after_switch", B, B)]


def test_a_failing_hook_before_the_switch_stops_it(here: Machine, moments: list[Any]) -> None:
    fail_at(here, B, "before_switch")
    with pytest.raises(switch.ChangeError, match="hook 'x'") as caught:
        switch.activate(here.host, "shop", B)
    assert caught.value.step == "before_switch"
    assert here.current == A
    assert moments[-2:] == [("on_failure", A, A), ("before_switch", B, A)], "what goes on serving is told"


def test_a_failing_hook_after_the_switch_is_said_and_no_more(here: Machine, moments: list[Any]) -> None:
    fail_at(here, B, "after_switch")
    done = switch.activate(here.host, "shop", B)
    assert "WARNING: shop: the hook 'x' (after_switch) failed." in done.message
    assert here.current == B
    assert ("after_switch", "failed") in here.log()
    assert len(moments) == 2


def test_a_failing_hook_of_a_failure_hides_nothing(here: Machine, moments: list[Any]) -> None:
    fail_at(here, A, "on_failure")
    here.app.sick.add((B, "own"))
    with pytest.raises(switch.ChangeError, match="failed the probe"):
        switch.activate(here.host, "shop", B)
    assert ("on_failure", "failed") in here.log()
    assert [moment for moment, _, _ in moments] == ["on_failure"]


def test_a_failed_build_is_told_and_ends_the_lock(here: Machine, moments: list[Any]) -> None:
    begin(here, build=True)
    assert deploy.fail(holding(here, "one"), "shop", C, "Install the locked dependencies")
    assert here.state(C) == ("failed", "Install the locked dependencies")
    assert moments == [("on_failure", A, A), ("build", C, A)]
    assert lock.read_lease(here.host, "shop") is None


def test_migrations_run_after_their_hooks(here: Machine, moments: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    done = migrate.Migrated(True, ("chat.0002_topic",), Path("/dump"), "applied")

    def run(*_: Any) -> migrate.Migrated:
        moments.append("migrate")
        return done

    monkeypatch.setattr(migrate, "migrate", run)
    assert deploy.migrate_database(here.host, "shop", B) == done
    assert moments == [("before_migrate", B, A), "migrate", ("after_migrate", B, A)]
    assert here.log() == [("migrate", "ok")]


def test_first_data_come_in_each_change_and_what_is_before_migrations_only_with_some(
    here: Machine, moments: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = here.layout.generation("shop", B) / "generation.json"
    hook = {"name": "", "command": "python manage.py loaddata first", "timeout_seconds": 60}
    path.write_text(json.dumps({**json.loads(path.read_text()), "hooks": {"after_migrate": [hook]}}))
    monkeypatch.setattr(migrate, "migrate", lambda *_: migrate.Migrated(False, (), None, "nothing"))
    monkeypatch.setattr(hooks, "run", lambda _host, one, moment: moments.append((moment, one.identifier, here.current)))
    for plan, wanted in (((), ["after_migrate"]), (("chat.0002_topic",), ["before_migrate", "after_migrate"])):
        monkeypatch.setattr(migrate, "plan", lambda *_, plan=plan: plan)
        moments.clear()
        deploy.migrate_database(here.host, "shop", B)
        assert [moment for moment, _, _ in moments] == wanted


def test_first_data_that_can_t_be_loaded_fail_the_candidate_so_that_the_next_run_tries_again(
    here: Machine, moments: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "migrate", lambda *_: migrate.Migrated(False, (), None, "nothing"))
    monkeypatch.setattr(migrate, "plan", lambda *_: ())
    fail_at(here, B, "after_migrate")
    with pytest.raises(QuintetError, match=r"the hook 'x' \(after_migrate\) failed"):
        deploy.migrate_database(here.host, "shop", B)
    assert here.state(B)[0] == "failed"
    assert here.log() == [("migrate", "failed")]


def test_a_plan_runs_no_hooks(here: Machine, moments: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate, "plan", lambda *_: ("chat.0002_topic",))
    assert deploy.plan_migrations(here.host, "shop", B) == ("chat.0002_topic",)
    assert (moments, here.log(), here.state(B)) == ([], [], ("built", ""))


def test_a_failing_migration_fails_the_candidate(
    here: Machine, moments: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise QuintetError("shop: the migrations failed.", "", "")

    monkeypatch.setattr(migrate, "migrate", fail)
    with pytest.raises(QuintetError, match="the migrations failed"):
        deploy.migrate_database(here.host, "shop", B)
    assert here.state(B) == ("failed", "shop: the migrations failed.")
    assert moments[1:] == [("on_failure", A, A), ("migrate", B, A)]
    assert here.log() == [("migrate", "failed")]


def test_static_files_are_kept_before_the_switch_and_dated_after_it(
    here: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, str, str | None]] = []
    monkeypatch.setattr(pool, "add", lambda _host, one: seen.append(("add", one.identifier, here.current)))
    monkeypatch.setattr(pool, "left", lambda _host, _app, one, _now: seen.append(("left", one, here.current)))
    switch.activate(here.host, "shop", B)
    assert seen == [("add", A, A), ("add", B, A), ("left", A, B)]


def test_a_full_disk_during_a_migration_is_told_logged_and_fails_the_candidate(
    here: Machine, moments: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(migrate, "migrate", fail)
    with pytest.raises(QuintetError, match="No space left on device") as caught:
        deploy.migrate_database(here.host, "shop", B)
    assert "quintet prune shop" in caught.value.remedy
    assert here.state(B)[0] == "failed"
    assert moments[1:] == [("on_failure", A, A), ("migrate", B, A)]
    assert here.log() == [("migrate", "failed")]


def test_an_undo_on_a_full_disk_brings_the_workers_back(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    here.add(C, "good", workers=[worker(C)])
    here.serve(C)
    here.add(D, workers=[worker(D)])
    begin(here, identifier=D)
    switch.activate(holding(here, "one"), "shop", D, confirm_within=60)

    def full(*_: Any) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Store, "mark", full)
    with pytest.raises(OSError, match="No space"):
        switch.undo(here.host, "shop", D, "nobody confirmed it within 60 s")
    assert here.current == C
    assert here.system.active.get(worker(C)) == "active"
    assert worker(D) not in here.system.active
    monkeypatch.undo()
    # The timer tries again.
    assert switch.undo(here.host, "shop", D, "nobody confirmed it within 60 s").changed
    assert app_state(here).unconfirmed is None


def test_an_undo_by_the_host_runs_the_hooks_of_a_failure(here: Machine, moments: list[Any]) -> None:
    begin(here, identifier=B)
    switch.activate(holding(here, "one"), "shop", B, confirm_within=60)
    moments.clear()
    switch.undo(here.host, "shop", B, "nobody confirmed it within 60 s")
    assert moments == [("on_failure", A, A), ("confirm", B, A)]


def test_the_log_tells_how_long_each_change_took(here: Machine) -> None:
    begin(here, identifier=C, build=True)
    here.clock.sleep(20)
    deploy.fail(holding(here, "one"), "shop", C, "no")
    begin(here, token="two", identifier=B)
    here.clock.sleep(5)
    switch.activate(holding(here, "two"), "shop", B, confirm_within=60)
    here.clock.sleep(3)
    switch.confirm(holding(here, "two"), "shop", B)
    drain.drain(here.host, "shop", A)
    log = {entry["action"]: entry for entry in here.host.store("shop").read_log()}
    assert {name: entry["seconds"] for name, entry in log.items()} == {
        "build": 20,
        "activate": 0,
        "confirm": 8,
        "drain": 15,
    }
    assert all(entry["by"] == "me@desk" and entry["generation"] for entry in log.values())
    assert (log["confirm"]["before"], log["activate"]["before"]) == (A, A)
