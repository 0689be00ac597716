"""The action install_packages, played on this machine, with an apt-mark and a dpkg-query that only say what they are told to."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.quintet.django.plugins.action.install_packages import missing_packages
from rendering import ROOT


@pytest.mark.parametrize(
    ("listed", "missing"),
    [
        ("", ["nginx", "redis-server"]),
        ("ii nginx\nii redis-server\n", []),
        ("ii nginx\n", ["redis-server"]),
        # Unpacked, or removed but for its configuration: apt has to see to it.
        ("iU nginx\nii redis-server\n", ["nginx"]),
        ("rc nginx\nii redis-server\n", ["nginx"]),
        ("ii nginx-common\nii redis-server\n", ["nginx"]),
    ],
)
def test_what_is_not_wholly_installed_is_missing(listed: str, missing: list[str]) -> None:
    assert missing_packages(["nginx", "redis-server"], listed) == missing


def install(folder: Path, names: list[str], by_hand: str, states: str) -> dict[str, Any]:
    """Run the action in check mode on this machine; returns its result."""
    for program, text in {"apt-mark": f"echo {by_hand}", "dpkg-query": f"printf '{states}'"}.items():
        (folder / program).write_text(f"#!/bin/sh\n[ $# -gt 1 ] && {text}\n")
        (folder / program).chmod(0o755)
    given = json.dumps({"names": names})
    command = ["ansible", "localhost", "--check", "-m", "quintet.django.install_packages", "-a", given]
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    result: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    return result


def test_what_is_there_by_hand_is_left_alone(tmp_path: Path) -> None:
    result = install(tmp_path, ["nginx"], by_hand="nginx", states="ii nginx\\n")
    assert (result["changed"], result["missing"]) == (False, [])


def test_check_mode_names_what_a_run_would_install(tmp_path: Path) -> None:
    result = install(tmp_path, ["nginx", "redis-server"], by_hand="nginx", states="ii nginx\\n")
    assert (result["changed"], result["missing"], result["msg"]) == (
        True,
        ["redis-server"],
        "would install redis-server",
    )


def test_what_came_for_the_sake_of_others_is_missing(tmp_path: Path) -> None:
    # dpkg is not even asked, since it would speak of all packages.
    result = install(tmp_path, ["nginx"], by_hand="", states="ii nginx\\n")
    assert result["missing"] == ["nginx"]
