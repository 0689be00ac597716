"""Installing and starting the Docker engine, with stubs in its place."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
console: Any = importlib.import_module("console")
engine: Any = importlib.import_module("engine")

Stub = Callable[[str, str], None]

DOCKER = """
case "$(cat {state})" in
    up) echo 26.1.5 ;;
    denied) echo 'permission denied while trying to connect' >&2; exit 1 ;;
    *) echo 'Cannot connect to the Docker daemon' >&2; exit 1 ;;
esac
"""


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Say what the stub engine is: up, denied or down."""
    file = tmp_path / "state"
    file.write_text("down")
    return file


@pytest.fixture
def stub(tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> Stub:
    """Return a way to put a command onto the PATH, where nothing else has to do with Docker."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for name in ("sh", "cat", "rm", "setsid", "sleep", "env"):
        (directory / name).symlink_to(f"/usr/bin/{name}" if Path(f"/usr/bin/{name}").exists() else f"/bin/{name}")

    def write(name: str, script: str) -> None:
        (directory / name).write_text(f"#!/bin/sh\n{script}\n")
        (directory / name).chmod(0o755)

    monkeypatch.setenv("PATH", str(directory))
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr(console, "SEARCH_PATH", str(directory))
    monkeypatch.setattr(console.os, "geteuid", lambda: 0)
    monkeypatch.setattr(engine, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(engine, "START_SECONDS", 2)
    monkeypatch.setattr(engine, "ENGINE_PID_FILE", tmp_path / "docker.pid")
    monkeypatch.setattr(engine, "CONTAINERD_PID_FILE", tmp_path / "containerd.pid")
    monkeypatch.setattr(engine, "is_booted_by_systemd", lambda: False)
    write("docker", DOCKER.format(state=state))
    return write


def test_leaves_an_engine_that_answers_alone(stub: Stub, state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state.write_text("up")
    engine.ensure_engine()
    assert capsys.readouterr().out == ""


def test_starts_a_sleeping_engine_with_its_log_in_the_cache(
    stub: Stub, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub("dockerd", f"echo hello; sleep 0.3; echo up > {state}; exec sleep 3")
    engine.ensure_engine()
    assert (tmp_path / "cache/dockerd.log").read_text() == "hello\n"
    assert "Waiting for the Docker engine to answer, at most 2 s" in capsys.readouterr().out


def test_removes_the_pid_files_of_a_killed_engine(stub: Stub, state: Path, tmp_path: Path) -> None:
    files = [tmp_path / "docker.pid", tmp_path / "containerd.pid"]
    for file in files:
        file.write_text(str(os.getpid()))
    stub("dockerd", f"[ ! -e {files[0]} ] && [ ! -e {files[1]} ] && echo up > {state}; exec sleep 3")
    engine.ensure_engine()
    assert not any(file.exists() for file in files)


def test_starts_no_second_engine_beside_one_that_is_starting(
    stub: Stub, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub("dockerd", f"touch {tmp_path}/second")
    (tmp_path / "docker.pid").write_text("1")
    monkeypatch.setattr(engine, "is_stale", lambda *_: False)
    with subprocess.Popen(["sh", "-c", f"sleep 0.3; echo up > {state}"]):
        engine.ensure_engine()
    assert not (tmp_path / "second").exists()


def test_installs_the_engine_where_there_is_none(stub: Stub, state: Path, tmp_path: Path) -> None:
    (tmp_path / "bin/docker").rename(tmp_path / "docker")
    stub("apt-cache", "exit 0")
    stub(
        "apt-get",
        f'case "$*" in *install*docker.io\\ docker-cli) /bin/mv {tmp_path}/docker {tmp_path}/bin/docker;; esac',
    )
    # dockerd arrives by the same package; here it is there first, which does not count as an engine.
    stub("dockerd", f"echo up > {state}; exec sleep 3")
    engine.ensure_engine()


def test_says_the_last_lines_of_an_engine_that_ends_at_once(stub: Stub) -> None:
    stub("dockerd", "echo 'iptables: no such table'; exit 1")
    with pytest.raises(console.Failure, match=r"it ended at once\niptables: no such table\nRead its messages"):
        engine.ensure_engine()


def test_gives_up_on_an_engine_that_never_answers(stub: Stub) -> None:
    stub("dockerd", "exec sleep 4")
    with pytest.raises(console.Failure, match="doesn't start: Cannot connect"):
        engine.ensure_engine()


def test_lets_the_user_reach_an_engine_of_root(stub: Stub, state: Path) -> None:
    state.write_text("denied")
    stub("chown", f'[ "$1 $2" = "0 /run/docker.sock" ] && echo up > {state}')
    engine.ensure_engine()


def test_starts_an_engine_that_sleeps_behind_a_forbidden_socket(stub: Stub, state: Path) -> None:
    state.write_text("denied")
    stub("chown", f"echo down > {state}")
    stub("dockerd", f"echo up > {state}; exec sleep 3")
    engine.ensure_engine()


def test_does_not_start_an_engine_beside_the_one_that_is_named(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://192.0.2.1:2375")
    with pytest.raises(console.Failure, match=r"No Docker engine answers at DOCKER_HOST=tcp://192.0.2.1:2375"):
        engine.ensure_engine()


def test_names_the_remedy_where_nothing_can_be_installed(stub: Stub, tmp_path: Path) -> None:
    (tmp_path / "bin/docker").unlink()
    with pytest.raises(console.Failure, match=r"no apt-get to install it with\.\nInstall it as your system does it"):
        engine.ensure_engine()


def test_a_user_without_sudo_is_told_what_to_run(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.os, "geteuid", lambda: 1000)
    stub("dockerd", "exit 0")
    with pytest.raises(console.Failure, match="Root is needed to start the Docker engine, and there is no sudo"):
        engine.ensure_engine()


def test_sudo_never_asks_where_there_is_no_terminal(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(console.sys.stdin, "isatty", lambda: False, raising=False)
    stub("sudo", "exit 1")
    with pytest.raises(console.Failure, match="sudo asks for a password where there is no terminal"):
        console.as_root(["true"], "try")


def test_a_pid_file_is_believed_only_when_its_process_has_the_name(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    file.write_text("no number")
    assert engine.is_stale(file, "sleep")
    file.write_text(f"{os.getpid()}\n")
    assert not engine.is_stale(file, Path("/proc/self/comm").read_text().strip())
    assert engine.is_stale(file, "dockerd")
    with subprocess.Popen(["true"]) as ended:
        pass
    file.write_text(f"{ended.pid}\n")
    assert engine.is_stale(file, "true")
