"""How secrets change: what the module app_environment makes of a rotation, of time, and of what the inventory says."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.quintet.django.plugins.modules import app_environment
from test_app_environment import keep

BEGIN = datetime(2026, 11, 25, 8, 0, tzinfo=UTC)
NAMES: dict[str, Any] = {"fallbacks": ["SECRET_KEY"], "overlaps": ["CHANNEL_LAYER_PASSWORD"]}
GENERATED: dict[str, Any] = {**NAMES, "secrets": {"SECRET_KEY": "", "CHANNEL_LAYER_PASSWORD": "", "TOKEN": ""}}


class Clock(datetime):
    """The time that the module sees."""

    moment = BEGIN

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return cls.moment


class App:
    """An app's directory over some days, and the generation that serves."""

    def __init__(self, directory: Path, patch: pytest.MonkeyPatch) -> None:
        self.directory = directory / "etc"
        self.manifest = directory / "generation.json"
        self.patch = patch

    def run(self, days: float = 0, *, check: bool = False, **arguments: Any) -> dict[str, Any]:
        """Run the module some days after the beginning."""
        Clock.moment = BEGIN + timedelta(days=days)
        self.patch.setattr(app_environment, "datetime", Clock)
        parameters = {
            **{"directory": str(self.directory), "environment": {}, "build_environment": {}, "secrets": {}},
            **{"generated_elsewhere": {}, "secrets_as": "credentials", "fallbacks": [], "overlaps": []},
            **{"fallback_days": 15, "rotate": [], "retire": [], "rotations_elsewhere": {}},
            **{"alternating": [], "composed": {}, "serving_elsewhere": []},
            **{"in_use": str(self.manifest), **arguments},
        }
        result: dict[str, Any] = app_environment.keep(parameters, self.directory, write=not check)
        return result

    def serve(self, revision: int) -> None:
        """Let a generation with this revision serve."""
        self.manifest.write_text(json.dumps({"revision": revision}))

    def deploy(self, days: float = 0, **arguments: Any) -> dict[str, Any]:
        """Run the module and switch to what it made."""
        result = self.run(days, **arguments)
        self.serve(result["revision"])
        return result

    @property
    def texts(self) -> dict[str, str]:
        """All that is on disk."""
        return {str(path): path.read_text() for path in sorted(self.directory.rglob("*")) if path.is_file()}


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> App:
    return App(tmp_path, monkeypatch)


def old(result: dict[str, Any], name: str) -> list[str]:
    return [entry["value"] for entry in result["rotations"][name]["old"]]


def test_without_a_rotation_there_is_no_fallback(app: App) -> None:
    first, second = app.deploy(**GENERATED), app.deploy(**GENERATED)
    assert first["names"] == ["CHANNEL_LAYER_PASSWORD", "SECRET_KEY", "TOKEN"]
    assert (first["changed"], second["changed"], second["revision"]) == (True, False, 1)


def test_a_rotated_key_has_the_old_one_as_its_fallback(app: App) -> None:
    before = app.deploy(**GENERATED)["secrets"]
    result = app.deploy(1, **GENERATED, rotate=["SECRET_KEY"])
    assert (result["changed"], result["revision"], result["rotated"]) == (True, 2, ["SECRET_KEY"])
    assert result["secrets"]["SECRET_KEY"] not in ("", before["SECRET_KEY"])
    assert result["secrets"]["SECRET_KEY_FALLBACKS"] == before["SECRET_KEY"]
    assert result["secrets"]["CHANNEL_LAYER_PASSWORD"] == before["CHANNEL_LAYER_PASSWORD"]
    credentials = app.directory / "revisions/2/credentials"
    assert (credentials / "SECRET_KEY_FALLBACKS").read_text() == before["SECRET_KEY"]
    assert (app.directory / "revisions/1/credentials/SECRET_KEY").read_text() == before["SECRET_KEY"]
    for path in app.directory.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_converge_after_a_rotation_changes_nothing(app: App) -> None:
    app.deploy(**GENERATED)
    rotated = app.deploy(1, **GENERATED, rotate=["SECRET_KEY"])
    again = app.deploy(2, **GENERATED)
    assert (again["changed"], again["revision"], again["secrets"]) == (False, 2, rotated["secrets"])


@pytest.mark.parametrize(("days", "is_there"), [(15.9, True), (16, False), (400, False)])
def test_a_fallback_ends_with_its_time(app: App, days: float, is_there: bool) -> None:
    app.deploy(**GENERATED)
    app.deploy(1, **GENERATED, rotate=["SECRET_KEY"])
    result = app.run(days, **GENERATED)
    assert ("SECRET_KEY_FALLBACKS" in result["secrets"]) == is_there
    assert (result["changed"], result["revision"]) == (not is_there, 2 if is_there else 3)
    assert (app.run(days, **GENERATED))["changed"] is False


def test_two_rotations_leave_two_fallbacks_the_newest_first(app: App) -> None:
    keys = [app.deploy(**GENERATED)["secrets"]["SECRET_KEY"]]
    keys.append(app.deploy(1, **GENERATED, rotate=["SECRET_KEY"])["secrets"]["SECRET_KEY"])
    result = app.deploy(5, **GENERATED, rotate=["SECRET_KEY"])
    assert result["secrets"]["SECRET_KEY_FALLBACKS"] == f"{keys[1]},{keys[0]}"
    assert app.deploy(17, **GENERATED)["secrets"]["SECRET_KEY_FALLBACKS"] == keys[1]


def test_in_the_environment_the_fallback_is_a_variable(app: App) -> None:
    arguments = {**GENERATED, "secrets_as": "environment"}
    before = app.deploy(**arguments)["secrets"]["SECRET_KEY"]
    app.deploy(1, **arguments, rotate=["SECRET_KEY"])
    assert f'SECRET_KEY_FALLBACKS="{before}"\n' in (app.directory / "revisions/2/environment").read_text()


def test_an_old_password_of_the_channel_layer_is_told_and_no_part_of_a_revision(app: App) -> None:
    before = app.deploy(**GENERATED)["secrets"]["CHANNEL_LAYER_PASSWORD"]
    rotated = app.deploy(1, **GENERATED, rotate=["CHANNEL_LAYER_PASSWORD"])
    assert old(rotated, "CHANNEL_LAYER_PASSWORD") == [before]
    assert "CHANNEL_LAYER_PASSWORD_FALLBACKS" not in rotated["names"]
    ended = app.deploy(17, **GENERATED)
    assert (old(ended, "CHANNEL_LAYER_PASSWORD"), ended["revision"]) == ([], 2)


def test_any_other_secret_gets_a_new_value_and_keeps_none(app: App) -> None:
    before = app.deploy(**GENERATED)["secrets"]["TOKEN"]
    result = app.deploy(1, **GENERATED, rotate=["TOKEN"])
    assert result["secrets"]["TOKEN"] != before
    assert old(result, "TOKEN") == []
    assert before not in json.dumps(result)


def test_a_rotation_whose_change_failed_goes_on(app: App) -> None:
    app.deploy(**GENERATED)
    first = app.run(1, **GENERATED, rotate=["SECRET_KEY"])
    second = app.run(1, **GENERATED, rotate=["SECRET_KEY"])
    assert (second["rotated"], second["secrets"]) == ([], first["secrets"])
    app.serve(second["revision"])
    third = app.run(1, **GENERATED, rotate=["SECRET_KEY"])
    assert (third["rotated"], third["secrets"] == first["secrets"]) == (["SECRET_KEY"], False)


def test_who_accepts_a_password_is_to_be_told_until_it_serves(app: App) -> None:
    assert app.deploy(**GENERATED)["unused"] == ["CHANNEL_LAYER_PASSWORD"]
    assert app.run(**GENERATED)["unused"] == []
    rotated = app.run(1, **GENERATED, rotate=["SECRET_KEY", "CHANNEL_LAYER_PASSWORD"])
    # By any run after it, whatever that one was asked for.
    asked: list[dict[str, Any]] = [{}, {"rotate": ["SECRET_KEY"]}, {"retire": ["CHANNEL_LAYER_PASSWORD"]}]
    for arguments in asked:
        assert app.run(2, **GENERATED, **arguments)["unused"] == rotated["unused"] == ["CHANNEL_LAYER_PASSWORD"]
    app.serve(app.run(2, **GENERATED)["revision"])
    assert app.run(3, **GENERATED)["unused"] == []


def test_a_killed_run_loses_no_value(app: App) -> None:
    before = app.deploy(**GENERATED)["secrets"]["SECRET_KEY"]
    # As if the run had ended after the first of its three files.
    store = app.directory / "secrets.json"
    store.write_text(json.dumps({**json.loads(store.read_text()), "SECRET_KEY": "new"}))
    result = app.run(1, **GENERATED)
    assert (result["secrets"]["SECRET_KEY"], result["secrets"]["SECRET_KEY_FALLBACKS"]) == ("new", before)


@pytest.mark.parametrize("secrets_as", ["credentials", "environment"])
def test_what_serves_is_never_dropped(app: App, secrets_as: str) -> None:
    # A host on hold, or a change that goes on failing, for months.
    arguments = {**GENERATED, "secrets_as": secrets_as}
    before = app.deploy(**arguments)["secrets"]
    app.run(1, **arguments, rotate=["SECRET_KEY", "CHANNEL_LAYER_PASSWORD"])
    late = app.run(100, **arguments, retire=["CHANNEL_LAYER_PASSWORD"])
    assert old(late, "CHANNEL_LAYER_PASSWORD") == [before["CHANNEL_LAYER_PASSWORD"]]
    assert late["used"] == ["CHANNEL_LAYER_PASSWORD"]
    app.serve(late["revision"])
    assert old(app.run(100, **arguments), "CHANNEL_LAYER_PASSWORD") == []


def test_retired_values_go_before_their_time(app: App) -> None:
    app.deploy(**GENERATED)
    app.deploy(1, **GENERATED, rotate=["SECRET_KEY"])
    result = app.deploy(1, **GENERATED, retire=["SECRET_KEY"])
    assert "SECRET_KEY_FALLBACKS" not in result["secrets"]
    assert (result["used"], result["changed"], result["revision"]) == ([], True, 3)
    assert app.run(1, **GENERATED, retire=["SECRET_KEY"])["changed"] is False


def test_a_value_from_the_inventory_is_rotated_by_changing_it_there(app: App) -> None:
    app.deploy(**NAMES, secrets={"SECRET_KEY": "first"})
    result = app.deploy(1, **NAMES, secrets={"SECRET_KEY": "second"}, rotate=["SECRET_KEY"])
    assert result["secrets"] == {"SECRET_KEY": "second", "SECRET_KEY_FALLBACKS": "first"}
    assert result["rotated"] == []
    back = app.deploy(2, **NAMES, secrets={"SECRET_KEY": "first"})
    assert back["secrets"] == {"SECRET_KEY": "first", "SECRET_KEY_FALLBACKS": "second"}


def test_an_old_value_with_a_comma_is_not_kept(app: App) -> None:
    app.deploy(**NAMES, secrets={"SECRET_KEY": "one,two"})
    result = app.deploy(1, **NAMES, secrets={"SECRET_KEY": "three"})
    assert result["secrets"] == {"SECRET_KEY": "three"}
    assert app.run(2, **NAMES, secrets={"SECRET_KEY": "three"})["changed"] is False


def test_check_mode_tells_the_truth_and_writes_nothing(app: App) -> None:
    app.deploy(**GENERATED)
    texts = app.texts
    told = app.run(1, check=True, **GENERATED, rotate=["SECRET_KEY"])
    assert (told["changed"], told["revision"], told["rotated"], app.texts) == (True, 2, ["SECRET_KEY"], texts)
    app.deploy(1, **GENERATED, rotate=["SECRET_KEY"])
    assert app.run(2, check=True, **GENERATED)["changed"] is False
    told = app.run(20, check=True, **GENERATED)
    assert (told["changed"], told["revision"]) == (True, 3)
    assert app.run(20, **GENERATED)["revision"] == 3


def test_the_other_hosts_follow_a_rotation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = App(tmp_path / "first", monkeypatch), App(tmp_path / "second", monkeypatch)
    for host in (first, second):
        host.directory.mkdir(parents=True)

    def both(days: float, **arguments: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        told = first.deploy(days, **GENERATED, **arguments)
        given = {"generated_elsewhere": told["secrets"], "rotations_elsewhere": told["rotations"]}
        return told, second.deploy(days, **GENERATED, **given)

    both(0)
    for days, rotate in ((1, ["SECRET_KEY", "TOKEN"]), (2, []), (3, ["TOKEN"]), (20, [])):
        told, followed = both(days, rotate=rotate)
        assert followed["conflicts"] == []
        assert followed["secrets"] == told["secrets"]
        assert followed["changed"] == told["changed"] == (days != 2)
        assert second.texts.keys() == {path.replace("/first/", "/second/") for path in first.texts}


def test_a_value_that_the_first_host_never_had_is_still_refused(app: App) -> None:
    app.deploy(**GENERATED)
    theirs: dict[str, Any] = {
        "generated_elsewhere": {"TOKEN": "theirs"},
        "rotations_elsewhere": {"TOKEN": {"was": ["another"]}},
    }
    assert app.run(1, **GENERATED, **theirs)["conflicts"] == ["TOKEN"]


def test_the_module_takes_what_the_role_gives(tmp_path: Path) -> None:
    keep(tmp_path, **GENERATED)
    result = keep(
        tmp_path, **GENERATED, rotate=["SECRET_KEY"], in_use=str(tmp_path / "generation.json"), fallback_days=1
    )
    assert result["rotated"] == ["SECRET_KEY"]
    assert "SECRET_KEY_FALLBACKS" in result["names"]
