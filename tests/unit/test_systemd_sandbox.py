"""The filters for units, and what systemd itself reads from their words where it is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from rendering import Role

FILTERS = Path(__file__).parents[2] / "plugins/filter"


def lines(overrides: dict[str, Any] | None = None) -> list[str]:
    result: list[str] = Role("gunicorn", overrides=overrides).evaluate("overrides | quintet.django.systemd_sandbox")
    return result


def quoted(value: object, command: bool = False) -> str:
    return str(Role("gunicorn", value=value, command=command).evaluate("value | quintet.django.systemd_quote(command)"))


def environment(**variables: object) -> list[str]:
    result: list[str] = Role("gunicorn", given=variables).evaluate("given | quintet.django.systemd_environment")
    return result


def test_is_strict_without_overrides() -> None:
    for line in (
        "ProtectSystem=strict",
        "NoNewPrivileges=yes",
        "CapabilityBoundingSet=",
        "PrivateUsers=yes",
        "UMask=0077",
    ):
        assert line in lines()
    assert lines() == lines(None) == lines({})


def test_writes_a_list_as_several_lines_in_their_order() -> None:
    filters = [line for line in lines() if line.startswith("SystemCallFilter=")]
    assert filters == ["SystemCallFilter=@system-service", "SystemCallFilter=~@privileged @resources"]
    assert "SystemCallFilter=@system-service @ipc" in lines({"SystemCallFilter": ["@system-service @ipc", "~@debug"]})


def test_replaces_adds_and_removes_by_name() -> None:
    changed = lines({"ProtectHome": "read-only", "IPAddressDeny": "any", "ProcSubset": "", "PrivateDevices": None})
    assert "ProtectHome=read-only" in changed
    assert "ProtectHome=yes" not in changed
    assert "IPAddressDeny=any" in changed
    assert not [line for line in changed if line.startswith(("ProcSubset", "PrivateDevices"))]
    assert len(changed) == len(lines()) + 1 - 2


def test_takes_truth_values_as_yaml_gives_them() -> None:
    assert "PrivateUsers=no" in lines({"PrivateUsers": False})


def test_an_empty_set_of_capabilities_stays_empty_instead_of_allowing_all() -> None:
    assert "CapabilityBoundingSet=" in lines({"CapabilityBoundingSet": ""})
    assert not [line for line in lines({"CapabilityBoundingSet": None}) if line.startswith("Capability")]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"ProtectSystm": "no"}, "sandbox.ProtectSystm: 'ProtectSystm' is not a sandbox directive"),
        ({"ExecStart": "/bin/sh"}, "sandbox.ExecStart"),
        ({"UMask": "0077\nUser=root"}, "line break"),
        ({"UMask": {"a": 1}}, "is not a text"),
        (["ProtectHome=no"], "is not a dictionary"),
    ],
)
def test_refuses_what_it_does_not_know(overrides: Any, said: str) -> None:
    with pytest.raises(AnsibleFilterError, match=said.replace("(", r"\(")):
        lines(overrides)


WORDS = [
    "plain",
    "",
    " two  words ",
    'a "quoted" word',
    "back\\slash \\n",
    "100% %n %%",
    "$HOME ${HOME}",
    "ünïcode",
    "'",
    ";#",
]


@pytest.mark.parametrize("word", WORDS)
def test_quotes_for_assignments(word: str) -> None:
    text = quoted(word)
    assert (text[0], text[-1]) == ('"', '"')
    assert text[1:-1].replace("%%", "%").replace('\\"', '"').replace("\\\\", "\\") == word


def test_escapes_dollars_in_commands_only() -> None:
    assert quoted("$HOME") == '"$HOME"'
    assert quoted("$HOME", command=True) == '"$$HOME"'


@pytest.mark.parametrize("value", ["a\nb", "a\tb", "\0", True, None, ["a"]])
def test_refuses_what_no_unit_can_carry(value: object) -> None:
    with pytest.raises(AnsibleFilterError):
        quoted(value)


def test_writes_an_environment_sorted_by_name() -> None:
    assert environment(B="x y", A=1) == ['Environment="A=1"', 'Environment="B=x y"']


@pytest.mark.parametrize(
    ("variables", "said"),
    [({"A-B": "x"}, "'A-B' cannot be the name"), ({"1A": "x"}, "no digit first"), ({"A": True}, "environment.A: True")],
)
def test_names_the_variable_that_is_wrong(variables: dict[str, object], said: str) -> None:
    with pytest.raises(AnsibleFilterError, match=said):
        environment(**variables)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_knows_every_line(tmp_path: Path) -> None:
    unit = tmp_path / "quintet-test.service"
    text = "\n".join([*lines(), *environment(WORDS="".join(WORDS))])
    unit.write_text(f"[Service]\nExecStart=/bin/echo {quoted('100% $', command=True)}\n{text}\n")
    said = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    assert str(unit) not in said.stderr


def test_each_filter_is_documented() -> None:
    for name in ("systemd_sandbox", "systemd_quote", "systemd_environment"):
        described = yaml.safe_load((FILTERS / f"{name}.yml").read_text())
        assert described["DOCUMENTATION"]["name"] == name
