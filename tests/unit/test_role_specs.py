"""Every role's defaults, argument specs and README say the same."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from rendering import Role

ROLES = sorted(path for path in (Path(__file__).parents[2] / "roles").iterdir() if path.is_dir())
# The app that a loop passes: the one input without the role's prefix.
APP = "django_app"


def read(path: Path) -> dict[str, Any]:
    return (yaml.safe_load(path.read_text()) if path.exists() else None) or {}


def entry_points(role: Path) -> dict[str, dict[str, Any]]:
    points: dict[str, dict[str, Any]] = read(role / "meta/argument_specs.yml").get("argument_specs", {})
    return points


def options(role: Path) -> dict[str, dict[str, Any]]:
    """Return the options of all entry points by name."""
    return {name: option for point in entry_points(role).values() for name, option in point.get("options", {}).items()}


roles = pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)


@roles
def test_has_a_spec(role: Path) -> None:
    assert "main" in entry_points(role)


@roles
def test_each_entry_point_is_a_task_file(role: Path) -> None:
    missing = [point for point in entry_points(role) if not (role / f"tasks/{point}.yml").exists()]
    assert not missing


@roles
def test_each_default_is_in_the_spec(role: Path) -> None:
    assert set(read(role / "defaults/main.yml")) - set(options(role)) == set()


@roles
def test_each_option_has_a_default(role: Path) -> None:
    optional = {name for name, option in options(role).items() if not option.get("required") and name != APP}
    assert optional - set(read(role / "defaults/main.yml")) == set()


@roles
def test_defaults_of_the_spec_are_those_of_the_role(role: Path) -> None:
    stated = {name: option["default"] for name, option in options(role).items() if "default" in option}
    bare = Role(role.name)
    assert {name: bare.evaluate(name) for name in stated if name in bare.variables} == stated


@roles
def test_names_begin_with_the_role(role: Path) -> None:
    wrong = [name for name in options(role) if not name.startswith(f"{role.name}_") and name != APP]
    internal = [name for name in read(role / "vars/main.yml") if not re.match(rf"__{role.name}(_|$)", name)]
    assert (wrong, internal) == ([], [])


@roles
def test_each_default_has_a_sentence_over_it(role: Path) -> None:
    lines = (role / "defaults/main.yml").read_text().splitlines()
    bare = [line for above, line in itertools.pairwise(lines) if re.match(r"[a-z]", line) and above[:1] != "#"]
    assert not bare


@roles
def test_the_readme_names_each_option_once_in_a_table(role: Path) -> None:
    rows = re.findall(r"^\| `([a-z_0-9]+)` +\|", (role / "README.md").read_text(), re.M)
    assert sorted(set(rows) - {APP}) == sorted(set(options(role)) - {APP})
    assert len(rows) == len(set(rows))


@pytest.mark.parametrize("name", ["gunicorn", "daphne"])
def test_the_app_dictionary_may_hold_what_the_defaults_look_for(name: str) -> None:
    role = next(role for role in ROLES if role.name == name)
    looked_for = re.findall(rf"django_app\.{name}\.([a-z_]+)", (role / "defaults/main.yml").read_text())
    assert sorted(looked_for) == read(role / "vars/main.yml")[f"__{name}_app_settings"]
