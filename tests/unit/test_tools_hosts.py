"""How test hosts are made and started; that they boot is for Molecule to show."""

import importlib
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
console: Any = importlib.import_module("console")
hosts: Any = importlib.import_module("hosts")


def test_a_changed_recipe_means_another_image(monkeypatch: pytest.MonkeyPatch) -> None:
    before = hosts.recipe("trixie")
    assert before != hosts.recipe("bookworm")
    monkeypatch.setattr(hosts, "PACKAGES", (*hosts.PACKAGES, "less"))
    assert hosts.recipe("trixie") != before


def test_what_keeps_bytecode_is_of_the_furnished_recipe_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {suite: hosts.recipe(suite) for suite in ("trixie", "trixie-furnished")}
    changed = tmp_path / "archives.py"
    changed.write_text(hosts.ARCHIVES.read_text() + "# Less")
    monkeypatch.setattr(hosts, "ARCHIVES", changed)
    assert hosts.recipe("trixie") == before["trixie"]
    assert hosts.recipe("trixie-furnished") != before["trixie-furnished"]


def test_the_image_is_bare() -> None:
    expected = {"systemd", "systemd-sysv", "dbus", "python3", "ca-certificates", "iproute2"}
    assert set(hosts.PACKAGES) == expected


def test_a_furnished_image_is_another_one_that_has_what_the_roles_install() -> None:
    assert hosts.recipe("trixie-furnished") != hosts.recipe("trixie")
    assert hosts.image_name("trixie-furnished") == "quintet-host:trixie-furnished"
    variables: dict[str, Any] = {}
    for role in ("postgresql", "redis"):
        variables |= yaml.safe_load((ROOT / f"roles/{role}/vars/main.yml").read_text())
    wanted = {*variables["__postgresql_packages"], variables["__redis_package"], "nginx", "python3-venv"}
    assert wanted <= set(hosts.FURNITURE)


def test_a_furnished_image_is_made_from_the_bare_one(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, ...]] = []
    monkeypatch.setattr(hosts, "inspect", lambda *_: "")
    monkeypatch.setattr(hosts, "pull", lambda _: True)
    monkeypatch.setattr(hosts, "build", lambda *arguments: made.append(("build", *arguments)))
    monkeypatch.setattr(hosts, "furnish", lambda *arguments: made.append(("furnish", *arguments)))
    hosts.make_image("quintet-host:bookworm-furnished", "bookworm-furnished")
    assert made == [
        ("build", "quintet-host:bookworm", "bookworm"),
        ("furnish", "quintet-host:bookworm-furnished", "bookworm-furnished", "quintet-host:bookworm"),
    ]


@pytest.mark.parametrize(("cgroups", "namespace"), [(1, "host"), (2, "private")])
def test_hosts_get_no_more_than_systemd_needs(cgroups: int, namespace: str) -> None:
    arguments = hosts.run_arguments(cgroups)
    assert "--privileged" not in arguments
    assert arguments[arguments.index("--cgroupns") + 1] == namespace
    assert ("/sys/fs/cgroup:/sys/fs/cgroup:rw" in arguments) == (cgroups == 1)
    assert arguments[arguments.index("--stop-signal") + 1] == "RTMIN+3"


def test_an_unknown_suite_is_refused_with_the_known_ones() -> None:
    with pytest.raises(console.Failure, match=r"suite 'buster'\.\nChoose one of: bookworm, trixie"):
        hosts.image_name("buster")


def test_a_container_of_another_kind_is_not_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "ensure_image", hosts.image_name)
    monkeypatch.setattr(hosts, "inspect", lambda *_: "true bookworm")
    with pytest.raises(console.Failure, match=r"'quintet-x' of another kind \(bookworm; wanted: trixie\)"):
        hosts.up("quintet-x", "trixie")


def test_a_silent_registry_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\n[ "$1" = pull ] && exec /bin/sleep 30\nexit 1\n')
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(hosts, "PULL_ANSWER_SECONDS", 0.3)
    started = time.monotonic()
    assert hosts.pull("debian:trixie") is False
    assert time.monotonic() - started < 5


def test_a_slow_registry_that_answers_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docker = tmp_path / "docker"
    docker.write_text(
        '#!/bin/sh\n[ "$1" = pull ] || exit 1\necho trixie: Pulling from library/debian\n/bin/sleep 0.6\n'
    )
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(hosts, "PULL_ANSWER_SECONDS", 0.3)
    assert hosts.pull("debian:trixie") is True


def test_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = {line.split(": ", 1)[1] for line in makefile.splitlines() if line.startswith(".PHONY: ")}
    said = subprocess.run(["make", "-C", ROOT, "help"], capture_output=True, text=True, check=True).stdout
    listed = {line.split()[1] for line in said.splitlines() if line.startswith("  make ")}
    assert listed == targets
    assert {"demo", "demo-down", "test", "check", "venv", "app", "build", "clean"} <= listed
