"""The command line of the host command: arguments, answers, errors, exit codes."""

import io
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from host_support import ROLE_FILES, A, B, C, D, Machine, serving
from quintet_host.cli import main
from quintet_host.generation import load
from quintet_host.state import AppState, Hold
from quintet_host.units import drain_unit


@pytest.fixture
def here(tmp_path: Path) -> Machine:
    return serving(tmp_path)


def asked(capsys: pytest.CaptureFixture[str]) -> Any:
    """Return the JSON object that a command answered."""
    return json.loads(capsys.readouterr().out)


def test_status_as_json(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    here.host.store("shop").write(AppState(previous=C, hold=Hold(A, "2026-11-23T20:00:00Z", "ann@ops")))
    assert main(["status", "--json"], here.host) == 0
    value = asked(capsys)
    [shop] = value["apps"]
    generations = shop.pop("generations")
    assert shop == {
        "app": "shop",
        "current": A,
        "previous": C,
        "hold": {"generation": A, "since": "2026-11-23T20:00:00Z", "by": "ann@ops"},
        "healthy": True,
        "gate": "open",
        "lock": None,
        "unconfirmed": None,
        "prepared": None,
        "left": [],
        "maintenance": None,
        "venvs": [],
    }
    assert [one["generation"] for one in generations] == [B, A], "newest first"
    assert generations[1] == {
        "generation": A,
        "state": "good",
        "reason": "",
        "since": "2026-11-23T20:00:00Z",
        "built_at": "2026-11-21T20:00:00Z",
        "draining": False,
        "units": {
            f"gunicorn-shop@{A}.socket": "active",
            f"daphne-shop@{A}.socket": "active",
            f"gunicorn-shop@{A}.service": "active",
            f"daphne-shop-1@{A}.service": "active",
        },
        "once": {},
    }


def test_status_sees_what_does_not_run(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    here.system.active[f"daphne-shop-1@{A}.service"] = "failed"
    here.system.active[drain_unit("shop", B)] = "active"
    main(["status", "shop", "--json"], here.host)
    [shop] = asked(capsys)["apps"]
    assert shop["healthy"] is False
    assert shop["generations"][0]["draining"] is True
    main(["status"], here.host)
    text = capsys.readouterr().out
    assert f"shop: serves {A}, NOT all units run" in text
    assert f"failed        daphne-shop-1@{A}.service" in text


def test_status_says_where_is_done_what_one_of_several_hosts_does(
    here: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    beat, mail = (f"worker-shop-{name}-1@{D}.service" for name in ("beat", "mail"))
    here.add(D, workers=[beat, mail], once=[beat])
    here.serve(D)
    here.system.told = {beat: "waits: app2 does this", mail: "of no concern"}
    main(["status", "shop"], here.host)
    text = capsys.readouterr().out
    assert f"active        {beat}  (waits: app2 does this)\n" in text
    assert f"active        {mail}\n" in f"{text}\n"
    main(["status", "shop", "--json"], here.host)
    [shop] = asked(capsys)["apps"]
    assert [one["once"] for one in shop["generations"] if one["generation"] == D] == [{beat: "waits: app2 does this"}]
    assert shop["healthy"] is True, "one that waits is well"


def test_status_of_an_app_that_is_not_here(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "blog", "--json"], here.host) == 0
    [blog] = asked(capsys)["apps"]
    assert (blog["app"], blog["current"], blog["generations"], blog["venvs"]) == ("blog", None, [], [])
    assert main(["status", "blog"], here.host) == 1
    assert "this host has no such app" in capsys.readouterr().err


def test_activate_as_json(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["activate", "shop", B, "--json", "--by", "ann@ops"], here.host) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    value = json.loads(captured.out)
    assert (value["changed"], value["generation"], value["previous"]) == (True, B, A)
    assert value["probes"][0] == {"name": "health", "ok": True, "seconds": 0.1, "message": "GET /healthz: as wanted"}
    assert here.host.store("shop").read_log()[0]["by"] == "ann@ops"


def test_a_failure_in_three_parts_and_as_json(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    here.app.sick.add((B, "own"))
    assert main(["activate", "shop", B, "--json"], here.host) == 1
    captured = capsys.readouterr()
    value = json.loads(captured.out)
    assert (value["changed"], value["failed"], value["step"]) == (False, True, "probe")
    assert value["probes"][0]["ok"] is False
    what, where, *remedy = captured.err.splitlines()
    assert what.startswith(f"quintet: shop: generation {B} failed the probe 'health': GET /healthz: got 503")
    assert where.startswith("Step: probe")
    assert remedy[0].startswith("Correct the app")


def test_rollback_and_log(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    main(["activate", "shop", B, "--json"], here.host)
    assert main(["rollback", "shop"], here.host) == 0
    assert f"site.yml now keeps {A}" in capsys.readouterr().out
    main(["log", "shop", "--json", "-n", "1"], here.host)
    [entry] = asked(capsys)["log"]
    assert (entry["action"], entry["result"], entry["generation"]) == ("rollback", "ok", A)
    main(["log", "shop"], here.host)
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize(
    "given",
    [
        [],
        ["activate", "shop"],
        ["activate", "shop", "../../etc"],
        ["status", "Shop"],
        ["mark", "shop", A, "good"],
        ["prune", "shop", "--keep", "0"],
        ["manage"],
        ["manage", "../etc", "check"],
        ["manage", "shop", "--generation"],
    ],
)
def test_wrong_usage_is_exit_code_2(here: Machine, given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(given, here.host) == 2
    assert "usage: quintet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["shop", "migrate", "--plan"], ["migrate", "--plan"]),
        (["shop", "--", "migrate", "--generation", "x"], ["migrate", "--generation", "x"]),
        (["--generation", A, "shop", "--", "--help"], ["--help"]),
        (["shop", f"--generation={A}", "shell", "-c", "print('$HOME')"], ["shell", "-c", "print('$$HOME')"]),
        (["shop", "a", "--", "b"], ["a", "--", "b"]),
        (["shop"], []),
    ],
)
def test_manage_passes_arguments_and_exit_code_on(here: Machine, given: list[str], expected: list[str]) -> None:
    assert main(["manage", *given], here.host) == 7
    assert here.system.attached is not None
    options, command = here.system.attached
    path = here.layout.generation("shop", A)
    assert command == [f"{path}/venv/bin/python", "manage.py", *expected]
    assert options[:5] == ["--quiet", "--collect", "--wait", "--service-type=exec", "--pipe"]
    assert f"--property=WorkingDirectory={path}/src" in options
    assert "--property=ProtectSystem=strict" in options
    assert any(option.startswith("--property=User=") for option in options)


def test_manage_of_another_generation_and_percent_signs(here: Machine) -> None:
    path = here.add(C, properties=["Environment=A=100%%"])
    main(["manage", "shop", "--generation", C, "check"], here.host)
    assert here.system.attached is not None
    options, command = here.system.attached
    assert command[0].startswith(str(path))
    assert "--property=Environment=A=100%" in options


def test_manage_without_a_manage_py(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    here.add(C, manage=None)
    assert main(["manage", "shop", "--generation", C, "check"], here.host) == 1
    assert "has no manage.py" in capsys.readouterr().err


def test_probe(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "shop", "--json"], here.host) == 0
    value = asked(capsys)
    assert (value["ok"], value["generation"], len(value["probes"])) == (True, A, 4)
    here.app.asked.clear()
    assert main(["probe", "shop", B], here.host) == 0
    assert here.app.asked == [("health", "own"), ("socket", "own")], "only the current one is probed through the edge"
    here.app.sick.add((B, "own"))
    assert main(["probe", "shop", B], here.host) == 1
    assert "FAILED    0.10 s  health: GET /healthz: got 503" in capsys.readouterr().out


def test_prune(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", "shop", "--keep", "1", "--json"], here.host) == 0
    value = asked(capsys)
    assert value.pop("changed") is False
    assert not any(value.values())


def test_an_app_that_is_not_here_leaves_no_trace(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rollback", "blog"], here.host) == 1
    assert "blog: this host has no such app" in capsys.readouterr().err
    assert not here.layout.state("blog").exists()
    assert main(["begin", "blog", A, "--build"], here.host) == 0


def test_begin_seal_and_a_late_failure(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["begin", "shop", C, "--build", "--token", "one", "--controller", '{"pid": 7}'], here.host) == 0
    assert "the lock is taken." in capsys.readouterr().out
    main(["status", "shop", "--json"], here.host)
    [shop] = asked(capsys)["apps"]
    assert (shop["lock"]["holder"], shop["lock"]["controller"]) != ("", None)
    here.add(C, "")
    assert main(["seal", "shop", C], here.host) == 1
    assert "is being changed by" in capsys.readouterr().err
    assert main(["seal", "shop", C, "--token", "one"], here.host) == 0
    assert here.state(C) == ("built", "")
    main(["mark", "shop", C, "failed", "--reason", "no wheel", "--token", "one"], here.host)
    assert here.state(C) == ("failed", "no wheel")
    assert here.log() == [("build", "ok"), ("build", "failed")]
    main(["unlock", "shop"], here.host)
    assert "there is no lock to end" in capsys.readouterr().out


def test_seal_takes_the_description_from_standard_input(
    here: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = here.add(C, "") / "generation.json"
    description = {**json.loads(path.read_text()), "revision": 9}
    path.unlink()
    monkeypatch.setattr("sys.stdin", io.StringIO("no JSON"))
    assert main(["seal", "shop", C, "--manifest", "-"], here.host) == 1
    assert "is no JSON object" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(description)))
    assert main(["seal", "shop", C, "--manifest", "-"], here.host) == 0
    assert load(here.layout, "shop", C).revision == 9
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_deploy_in_its_steps(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    step = ["--token", "one", "--json", "--by", "ann@desk"]
    main(["begin", "shop", B, *step], here.host)
    assert main(["activate", "shop", B, "--confirm-within", "60", *step], here.host) == 0
    capsys.readouterr()
    main(["status", "shop"], here.host)
    text = capsys.readouterr().out
    assert f"lock     ann@desk since 2026-11-23T20:00:00Z: deploy shop {B}" in text
    assert f"goes back to {A} at 2026-11-23T20:01:00Z unless it is confirmed" in text
    assert main(["confirm", "shop", B, *step], here.host) == 0
    value = asked(capsys)
    assert (value["changed"], value["pruned"]["changed"]) == (True, False)
    main(["status", "shop", "--json"], here.host)
    [shop] = asked(capsys)["apps"]
    assert (shop["lock"], shop["unconfirmed"]) == (None, None)


def test_what_can_t_be_removed_fails_no_deploy(
    here: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: Any) -> None:
        raise OSError(30, "Read-only file system")

    main(["begin", "shop", B, "--token", "one"], here.host)
    main(["activate", "shop", B, "--confirm-within", "60", "--token", "one"], here.host)
    monkeypatch.setattr("quintet_host.cli.prune", fail)
    assert main(["confirm", "shop", B, "--token", "one"], here.host) == 0
    assert "WARNING: old generations could not be removed" in capsys.readouterr().out
    assert here.log()[-1] == ("prune", "failed")
    assert main(["begin", "shop", B, "--token", "two"], here.host) == 0


def test_undo_ends_its_own_lock(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    main(["begin", "shop", B, "--token", "one"], here.host)
    main(["activate", "shop", B, "--confirm-within", "60", "--token", "one"], here.host)
    capsys.readouterr()
    assert main(["undo", "shop", B, "--token", "one", "--reason", "web2 failed", "--json"], here.host) == 0
    assert (asked(capsys)["changed"], here.current) == (True, A)
    assert main(["undo", "shop", "--json", "--token", "one"], here.host) == 0, "cleaning up twice is no error"
    assert asked(capsys)["changed"] is False
    assert main(["begin", "shop", B, "--token", "two"], here.host) == 0


def test_begin_refuses_what_serves(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["begin", "shop", A, "--build"], here.host) == 1
    assert "serves; it can't become building" in capsys.readouterr().err
    assert here.state(A) == ("good", "")


def test_a_build_stops_what_a_killed_change_left_running(here: Machine) -> None:
    here.system.active[f"gunicorn-shop@{B}.service"] = "active"
    here.system.active[drain_unit("shop", B)] = "active"
    main(["begin", "shop", B, "--build"], here.host)
    assert here.running(B) == []
    assert len(here.running(A)) == 4


def test_boot_and_drain(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["boot", "shop"], here.host) == 0
    assert main(["boot", "blog"], here.host) == 0
    assert "nothing to start" in capsys.readouterr().out
    assert main(["drain", "shop", A], here.host) == 1
    assert main(["drain", "shop", B], here.host) == 0


def test_a_full_disk_is_told_as_such(
    here: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("quintet_host.state.write_json", full)
    assert main(["begin", "shop", B, "--build"], here.host) == 1
    assert "No space left on device" in capsys.readouterr().err


def test_a_terminal_without_the_characters_or_none_at_all(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    here.add(C, "")
    here.host.store("shop").mark(C, "failed", "déjà vu", here.clock.now())
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert main(["status"], here.host) == 0
    assert rb"d\xe9j\xe0 vu" in written.getvalue()

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr("sys.stderr", Gone())
    assert main(["activate", "shop", B], here.host) == 0
    assert here.current == B


def test_not_root_is_told_how(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["status", "shop"]) == 1
    assert "sudo quintet status shop" in capsys.readouterr().err


def test_the_script_is_deaf_to_the_callers_environment() -> None:
    script = ROLE_FILES / "quintet"
    assert script.stat().st_mode & 0o777 == 0o755
    assert script.read_text().splitlines()[0] == "#!/usr/bin/python3 -I"


def test_the_package_needs_only_the_standard_library() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import quintet_host.cli; print(quintet_host.cli.main(['--help']))"
    )
    done = subprocess.run(
        ["python3", "-I", "-S", "-c", code, str(ROLE_FILES)], capture_output=True, text=True, check=False
    )
    assert done.stdout.rstrip().endswith("0"), done.stderr
    for command in ("status", "activate", "rollback", "manage", "probe", "prune", "log"):
        assert command in done.stdout
