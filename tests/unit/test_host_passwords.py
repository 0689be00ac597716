"""A generation whose password is no longer good is no target of a rollback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from host_support import A, B, Machine, serving
from quintet_host import switch
from quintet_host.errors import QuintetError

NAME = "CHANNEL_LAYER_PASSWORD"


@pytest.fixture
def here(tmp_path: Path) -> Machine:
    found = serving(tmp_path)
    switch.activate(found.host, "shop", B)
    return found


def told(here: Machine, value: str, *old: str, passwords: tuple[str, ...] = (NAME,)) -> None:
    """Write what a playbook has left about the passwords."""
    configuration = here.layout.configuration("shop")
    rotations = {
        NAME: {"value": value, "old": [{"value": one, "until": "2026-12-01T00:00:00Z"} for one in old], "was": []}
    }
    (configuration / "rotations.json").write_text(json.dumps(rotations))
    (configuration / "settings.json").write_text(json.dumps({"passwords": passwords}))


def credential(here: Machine, value: str) -> None:
    path = here.layout.configuration("shop") / "revisions/1/credentials" / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value)


def environment(here: Machine, line: str) -> None:
    path = here.layout.configuration("shop") / "revisions/1/environment"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'LOG_LEVEL="INFO"\n{line}\n')


def test_a_password_that_was_retired_is_in_the_way(here: Machine) -> None:
    credential(here, "first")
    told(here, "third", "second")
    with pytest.raises(QuintetError, match=rf"{A} logs in with a password that is no longer good: {NAME}\.") as caught:
        switch.roll_back(here.host, "shop")
    assert "Deploy its code again" in caught.value.remedy
    assert "first" not in str(caught.value)
    assert here.current == B


@pytest.mark.parametrize("value", ["third", "second"])
def test_the_present_and_the_old_one_are_good(here: Machine, value: str) -> None:
    credential(here, value)
    told(here, "third", "second")
    assert switch.roll_back(here.host, "shop").generation == A


@pytest.mark.parametrize(
    ("line", "good"), [(r'CHANNEL_LAYER_PASSWORD="a\"\\\$b"', True), ('CHANNEL_LAYER_PASSWORD="x"', False)]
)
def test_one_in_the_environment_is_read_as_systemd_reads_it(here: Machine, line: str, good: bool) -> None:
    environment(here, line)
    told(here, 'a"\\$b')
    if good:
        assert switch.roll_back(here.host, "shop").generation == A
    else:
        with pytest.raises(QuintetError, match="no longer good"):
            switch.roll_back(here.host, "shop")


def test_other_secrets_and_apps_without_any_are_nothing(here: Machine) -> None:
    credential(here, "first")
    told(here, "third", passwords=())
    assert switch.roll_back(here.host, "shop").generation == A
    told(here, "third", passwords=("ANOTHER",))
    assert switch.roll_back(here.host, "shop", B).generation == B
