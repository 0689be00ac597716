"""Who runs a play, and whether an earlier run is gone."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.quintet.django.plugins.module_utils.controller import identity, is_gone, start_time, who


def recorded(**change: Any) -> dict[str, Any]:
    own = identity()
    assert own is not None
    return {**own, **change}


@pytest.fixture
def ended() -> tuple[int, int]:
    """Return the number and the start of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = start_time(process.pid)
    process.communicate()
    assert started is not None
    return process.pid, started


def test_a_process_that_runs_is_not_gone() -> None:
    assert not is_gone(recorded())


def test_one_that_ended_is_gone(ended: tuple[int, int]) -> None:
    pid, started = ended
    assert is_gone(recorded(pid=pid, started=started))


def test_another_process_of_the_same_number_does_not_count(ended: tuple[int, int]) -> None:
    assert is_gone(recorded(started=ended[1] + 1))


def test_what_cannot_be_seen_from_here_counts_as_there(ended: tuple[int, int], tmp_path: Path) -> None:
    pid, started = ended
    assert not is_gone(recorded(pid=pid, started=started, pid_namespace="pid:[1]"))
    assert not is_gone(recorded(pid=pid, started=started, boot="another", host="another/0123"))
    assert not is_gone(None)
    assert not is_gone({})
    assert not is_gone(recorded(pid=pid, started=started), proc=tmp_path)


def test_a_machine_that_was_started_again_has_none_of_its_processes(tmp_path: Path) -> None:
    (tmp_path / "machine-id").write_text("0123\n")
    own = identity(etc=tmp_path)
    assert own is not None
    assert is_gone({**own, "boot": "the one before"}, etc=tmp_path)
    # Without an id nobody knows that it is the same machine: many have the same name.
    (tmp_path / "machine-id").write_text("")
    nameless = identity(etc=tmp_path)
    assert nameless is not None
    assert not is_gone({**nameless, "boot": "the one before"}, etc=tmp_path)


def test_without_proc_there_is_no_identity(tmp_path: Path) -> None:
    assert identity(tmp_path) is None
    assert start_time(1, tmp_path) is None


def test_a_task_names_the_main_process_and_not_its_own() -> None:
    # Ansible runs each task in a child of the main process.
    context = multiprocessing.get_context("fork")
    with context.Pool(1) as pool:
        seen = pool.apply(identity)
    assert seen is not None
    assert seen["pid"] == os.getpid()


def test_a_name_with_parentheses_does_not_confuse_it(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7/stat").write_text("7 (a) b (c) " + " ".join(["S", *map(str, range(4, 40))]) + "\n")
    assert start_time(7, tmp_path) == 22


def test_it_says_who() -> None:
    user, _, machine = who().partition("@")
    assert user
    assert machine == os.uname().nodename
