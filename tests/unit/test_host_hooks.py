"""Commands in a generation's environment, and the app's hooks."""

from dataclasses import replace
from pathlib import Path

import pytest
from host_support import A, Machine, serving
from quintet_host import hooks, transient
from quintet_host.errors import QuintetError
from quintet_host.generation import Generation, Hook, load
from quintet_host.system import Captured, System

TRAP = "trap 'exit 143' TERM HUP; "


@pytest.fixture
def here(tmp_path: Path) -> Machine:
    return serving(tmp_path)


def generation(here: Machine, *commands: Hook) -> Generation:
    return replace(load(here.layout, "shop", A), hooks={"before_switch": commands})


def test_a_hook_runs_as_the_app_in_its_source_with_its_commands_first(here: Machine) -> None:
    one = generation(here, Hook("warm the cache", "manage warm $HOME", 90))
    hooks.run(here.host, one, "before_switch", {"QUINTET_STEP": "probe", "QUINTET_REASON": "a\nb\x1b[0m"})
    [(unit, options, command)] = here.system.captured
    assert unit == "quintet-hook-shop.service"
    assert command == ["/bin/sh", "-euc", f"{TRAP}manage warm $$HOME"], "the shell must see the dollar, not systemd"
    assert f"--property=WorkingDirectory={one.path}/src" in options
    assert f"--property=User={one.user}" in options
    assert "--property=ProtectSystem=strict" in options
    assert "--property=RuntimeMaxSec=90" in options
    assert f"--setenv=PATH={one.path}/venv/bin:{transient.SYSTEM_PATH}" in options
    assert "--setenv=QUINTET_STEP=probe" in options
    assert "--setenv=QUINTET_REASON=a\nb [0m" in options, "systemd refuses control characters"


def test_hooks_run_in_their_order_until_one_fails(here: Machine) -> None:
    here.system.answers = [Captured(0, (), "success"), Captured(3, ("first", "last"), "exit-code")]
    reported: list[str] = []
    one = generation(here, Hook("", "true", 600), Hook("check", "check it", 600), Hook("", "never", 600))
    with pytest.raises(QuintetError) as caught:
        hooks.run(replace(here.host, report=reported.append), one, "before_switch")
    assert [command[-1] for _, _, command in here.system.captured] == [f"{TRAP}true", f"{TRAP}check it"]
    assert reported == ["before_switch: true", "before_switch: check"]
    assert "the hook 'check' (before_switch)" in caught.value.what
    assert "ended with code 3" in caught.value.what
    assert "check it" in caught.value.where
    assert caught.value.details == ("first", "last")


def test_a_hook_without_time_is_told_from_one_that_fails(here: Machine) -> None:
    # As of a command that ends with 0 when it is asked to stop.
    here.system.answers = [Captured(0, (), "timeout")]
    with pytest.raises(QuintetError) as caught:
        hooks.run(here.host, generation(here, Hook("", "sleep 9", 2.5)), "before_switch")
    assert "did not end within 2.5 s" in caught.value.what
    assert "timeout_seconds" in caught.value.remedy
    assert caught.value.details == ("(it wrote nothing)",)


def test_other_moments_run_nothing(here: Machine) -> None:
    hooks.run(here.host, generation(here, Hook("", "false", 600)), "after_switch")
    assert here.system.captured == []


def test_what_a_killed_caller_left_is_not_run_twice(here: Machine) -> None:
    here.system.active["quintet-hook-shop.service"] = "active"
    with pytest.raises(QuintetError, match="an earlier hook still runs"):
        hooks.run(here.host, generation(here, Hook("", "true", 600)), "before_switch")
    assert here.system.captured == []
    here.system.active["quintet-hook-shop.service"] = "failed"
    hooks.run(here.host, generation(here, Hook("", "true", 600)), "before_switch")
    assert len(here.system.captured) == 1


# ---- run_captured, with a systemd-run that is none ------------------------------------------------------------------


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> System:
    """A System whose systemd-run runs what follows --, and whose systemctl writes down how it was called."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "systemd-run").write_text('#!/bin/sh\nuntil [ "$1" = -- ]; do shift; done; shift; exec "$@"\n')
    (programs / "systemctl").write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/called; [ "$1" != show ] || echo exit-code\n'
    )
    for program in programs.iterdir():
        program.chmod(0o755)
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
    monkeypatch.setattr("quintet_host.system._environment", lambda: environment)
    monkeypatch.setenv("PATH", environment["PATH"])
    return System()


def test_both_streams_are_kept_and_passed_on_as_they_come(system: System, tmp_path: Path) -> None:
    heard: list[str] = []
    done = system.run_captured(
        "one.service", ["--wait"], ["sh", "-c", "echo out; echo err >&2; exit 4"], heard=heard.append
    )
    assert done == Captured(4, ("out", "err"), "exit-code")
    assert heard == ["out", "err"]
    assert (tmp_path / "called").read_text().splitlines() == [
        "show --property=Result --value -- one.service",
        "reset-failed -- one.service",
    ]


def test_a_file_takes_standard_output(system: System, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"content")
    with (tmp_path / "in").open("rb") as stdin, (tmp_path / "out").open("wb") as stdout:
        done = system.run_captured("one.service", [], ["sh", "-c", "cat; echo err >&2"], stdin=stdin, stdout=stdout)
    assert done.lines == ("err",)
    assert (tmp_path / "out").read_bytes() == b"content"


def test_only_the_last_lines_are_kept(system: System) -> None:
    done = system.run_captured("one.service", [], ["seq", "1000"])
    assert (done.lines[0], done.lines[-1], len(done.lines)) == ("801", "1000", 200)


def test_an_interruption_stops_the_service(system: System, tmp_path: Path) -> None:
    def interrupt(_line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        system.run_captured("one.service", [], ["sh", "-c", "echo begun; exec sleep 60"], heard=interrupt)
    assert (tmp_path / "called").read_text().splitlines() == ["stop -- one.service"]
