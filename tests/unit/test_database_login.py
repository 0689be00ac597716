"""Passwords that two logins have in turn: how app_environment hands them out, over rotations, failures and other hosts."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rendering import ROOT
from test_rotation import App, old

NAME = "DATABASE_PASSWORD"
URL = "postgresql://shop_{login}:{value}@%2Frun/shop"
PEER: dict[str, Any] = {"alternating": [NAME], "secrets": {}}
PASSWORD: dict[str, Any] = {
    "alternating": [NAME],
    "secrets": {NAME: ""},
    "composed": {"DATABASE_URL": {"secret": NAME, "text": URL}},
}


def given(value: str) -> dict[str, Any]:
    """Return the parameters of an app whose inventory has the password."""
    return {**PASSWORD, "secrets": {NAME: value}}


def logins(result: dict[str, Any]) -> dict[int, str]:
    """Return which password each login accepts; an empty one under 0 where some may come without."""
    rotation = result["rotations"][NAME]
    entries = [rotation, *rotation["old"]]
    assert len({entry["login"] for entry in entries}) == len(entries), "two values on one login"
    return {entry["login"]: entry["value"] for entry in entries}


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> App:
    return App(tmp_path, monkeypatch)


def test_the_url_is_a_secret_made_of_the_password(app: App) -> None:
    result = app.deploy(**given("p w/%@:"))
    assert result["secrets"] == {NAME: "p w/%@:", "DATABASE_URL": "postgresql://shop_1:p%20w%2F%25%40%3A@%2Frun/shop"}
    assert result["names"] == [NAME, "DATABASE_URL"]
    assert (app.directory / "revisions/1/credentials/DATABASE_URL").read_text() == result["secrets"]["DATABASE_URL"]
    assert (app.directory / "revisions/1/environment").read_text() == ""
    assert logins(result) == {1: "p w/%@:"}


def test_a_build_gets_a_url_that_can_be_read(app: App) -> None:
    app.deploy(**given("hunter2hunter2"))
    build = (app.directory / "revisions/1/build.environment").read_text()
    assert 'DATABASE_URL="postgresql://shop_1:placeholder-' in build
    assert "hunter2" not in build


def test_in_the_environment_the_url_is_a_variable(app: App) -> None:
    app.deploy(**given("x/y"), secrets_as="environment")
    text = (app.directory / "revisions/1/environment").read_text()
    assert text == 'DATABASE_PASSWORD="x/y"\nDATABASE_URL="postgresql://shop_1:x%2Fy@%2Frun/shop"\n'


def test_each_new_value_takes_the_other_login(app: App) -> None:
    passwords = []
    for days, login in ((0, 1), (20, 2), (40, 1), (60, 2)):
        result = app.deploy(days, **PASSWORD, rotate=[NAME] if days else [])
        assert result["secrets"]["DATABASE_URL"].startswith(f"postgresql://shop_{login}:")
        passwords.append(result["secrets"][NAME])
        # Both generations reach the database meanwhile.
        expected = {login: passwords[-1]} if days == 0 else {login: passwords[-1], 3 - login: passwords[-2]}
        assert logins(result) == expected
        assert app.deploy(days + 1, **PASSWORD)["changed"] is False
    assert len(set(passwords)) == 4
    ended = app.deploy(80, **PASSWORD)
    assert logins(ended) == {2: passwords[-1]}
    # The database's business alone: no new generation.
    assert ended["revision"] == result["revision"]


def test_a_third_value_waits_for_the_first_ones_login(app: App) -> None:
    app.deploy(**PASSWORD)
    second = app.deploy(1, **PASSWORD, rotate=[NAME])
    before = app.texts
    blocked = app.run(2, **PASSWORD, rotate=[NAME])
    assert blocked["blocked"] == {NAME: "2026-12-11T08:00:00Z"}
    assert (blocked["changed"], blocked["secrets"], app.texts) == (False, {}, before)
    assert app.run(2, **PASSWORD)["changed"] is False
    assert logins(app.deploy(2, **PASSWORD, retire=[NAME])) == {2: second["secrets"][NAME]}
    third = app.deploy(3, **PASSWORD, rotate=[NAME])
    assert logins(third) == {1: third["secrets"][NAME], 2: second["secrets"][NAME]}


def test_what_serves_keeps_its_login_while_changes_fail(app: App) -> None:
    first = app.deploy(**PASSWORD)
    second = app.run(1, **PASSWORD, rotate=[NAME])
    assert logins(second) == {1: first["secrets"][NAME], 2: second["secrets"][NAME]}
    # Months later, retired, and asked for once more: that rotation has not come to its end.
    for rotate, retire in (([], []), ([], [NAME]), ([NAME], [])):
        again = app.run(100, **PASSWORD, rotate=rotate, retire=retire)
        assert (again["blocked"], again["secrets"], logins(again)) == ({}, second["secrets"], logins(second))
    assert app.run(100, **PASSWORD, retire=[NAME])["used"] == [NAME]


def test_a_third_value_of_the_inventory_is_refused_until_the_second_is_back_or_the_first(app: App) -> None:
    app.deploy(**given("first"))
    app.run(1, **given("second"))
    assert app.run(100, **given("third"))["blocked"] == {NAME: "2026-12-11T08:00:00Z"}
    assert logins(app.run(101, **given("second"))) == {1: "first", 2: "second"}
    # The second never served; nothing but its time holds its login.
    assert logins(app.run(102, **given("first"))) == {1: "first", 2: "second"}
    assert logins(app.deploy(102, **given("third"), retire=[NAME])) == {1: "first", 2: "third"}


@pytest.mark.parametrize("secrets_as", ["credentials", "environment"])
def test_who_comes_without_a_password_may_so_until_its_time_is_over(app: App, secrets_as: str) -> None:
    app.deploy(**PEER, secrets_as=secrets_as)
    switching = {**PASSWORD, "secrets_as": secrets_as}
    result = app.run(1, **switching)
    password = result["secrets"][NAME]
    assert logins(result) == {0: "", 1: password}
    # For ever where the switch to it goes on failing.
    assert logins(app.run(100, **switching, retire=[NAME])) == {0: "", 1: password}
    app.serve(result["revision"])
    assert logins(app.deploy(100, **switching)) == {1: password}


def test_who_comes_without_one_is_in_the_way_of_no_new_value(app: App) -> None:
    app.deploy(**PEER)
    first = app.deploy(1, **PASSWORD)
    second = app.deploy(2, **PASSWORD, rotate=[NAME])
    assert logins(second) == {0: "", 1: first["secrets"][NAME], 2: second["secrets"][NAME]}
    assert logins(app.deploy(3, **PASSWORD, retire=[NAME])) == {2: second["secrets"][NAME]}


def test_the_way_back_to_no_password(app: App) -> None:
    password = app.deploy(**PASSWORD)["secrets"][NAME]
    back = app.deploy(1, **PEER)
    assert (back["secrets"], logins(back)) == ({}, {0: "", 1: password})
    assert app.deploy(2, **PEER)["changed"] is False
    # And forth again, with the same login for the same password.
    assert logins(app.deploy(3, **PASSWORD)) == {0: "", 1: password}
    assert logins(app.deploy(4, **PEER)) == {0: "", 1: password}
    ended = app.deploy(30, **PEER)
    assert logins(ended) == {0: ""}
    assert password not in json.dumps(ended)
    assert logins(app.deploy(31, **PASSWORD)) == {0: "", 1: password}


def test_an_app_that_never_had_a_password_has_no_rotation(app: App) -> None:
    result = app.deploy(**PEER)
    assert result["rotations"] == {}
    assert not (app.directory / "rotations.json").exists()


def test_a_secret_of_that_name_that_was_the_apps_own_is_no_login_yet(app: App) -> None:
    app.deploy(secrets={NAME: ""}, overlaps=[NAME])
    result = app.deploy(1, **PASSWORD)
    assert logins(result) == {0: "", 1: result["secrets"][NAME]}


def test_what_another_host_uses_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = App(tmp_path / "first", monkeypatch), App(tmp_path / "second", monkeypatch)
    for host in (first, second):
        host.directory.mkdir(parents=True)

    def both(days: float, *, follows: bool, **arguments: Any) -> dict[str, Any]:
        asked = second.run(days, check=True, **PASSWORD)
        told = first.run(days, **PASSWORD, serving_elsewhere=[asked["serving"]], **arguments)
        if not told["blocked"]:
            first.serve(told["revision"])
            given = {"generated_elsewhere": told["secrets"], "rotations_elsewhere": told["rotations"]}
            followed = second.run(days, **PASSWORD, **given)
            assert (followed["secrets"], followed["rotations"]) == (told["secrets"], told["rotations"])
            if follows:
                second.serve(followed["revision"])
        return told

    one = both(0, follows=True)["secrets"][NAME]
    # The second host is on hold.
    two = both(1, follows=False, rotate=[NAME])["secrets"][NAME]
    assert logins(both(100, follows=False)) == {1: one, 2: two}
    late = both(100, follows=False, retire=[NAME])
    assert (logins(late), late["used"]) == ({1: one, 2: two}, [NAME])
    assert both(100, follows=False, rotate=[NAME])["blocked"] == {NAME: "2026-12-11T08:00:00Z"}
    both(101, follows=True)
    assert logins(both(101, follows=True)) == {2: two}
    assert old(both(102, follows=True, rotate=[NAME]), NAME) == [two]


PLAY: dict[str, Any] = {
    "hosts": "app",
    "gather_facts": False,
    "tasks": [
        {
            "ansible.builtin.include_role": {"name": "quintet.django.django_app", "tasks_from": "prepare"},
            "vars": {"django_app": {"name": "shop", "source": {"directory": "src"}, "database_login": "password"}},
            "tags": ["postgresql"],
        }
    ],
}


class Hosts:
    """Two hosts of an app, which are this machine, and the part of the role that keeps their secrets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        local = {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"}
        hosts = {"all": {"children": {"app": {"hosts": {"a": local, "b": local}}}}}
        (folder / "hosts.json").write_text(json.dumps(hosts))
        (folder / "play.yml").write_text(json.dumps([PLAY]))

    def play(self, **variables: Any) -> subprocess.CompletedProcess[str]:
        """Run that part."""
        place = f"{self.folder}/{{{{ inventory_hostname }}}}"
        given = {"__django_app_settings": f"{place}/etc", "__django_app_home": f"{place}/srv", **variables}
        command = ["ansible-playbook", "-i", f"{self.folder}/hosts.json", f"{self.folder}/play.yml"]
        return subprocess.run(
            [*command, "--tags", "postgresql", "-e", json.dumps(given)],
            cwd=ROOT,
            env={**os.environ, "ANSIBLE_NOCOLOR": "true"},
            capture_output=True,
            text=True,
            check=False,
        )

    def serve(self, host: str, revision: int) -> None:
        """Let a generation with this revision serve on a host."""
        manifest = self.folder / host / "srv/current/generation.json"
        manifest.parent.mkdir(parents=True, exist_ok=True)
        manifest.write_text(json.dumps({"revision": revision}))

    def rotation(self, host: str) -> dict[str, Any]:
        """Return what a host has of the password."""
        rotation: dict[str, Any] = json.loads((self.folder / host / "etc/rotations.json").read_text())[NAME]
        return rotation


def test_a_host_that_stays_behind_keeps_its_login(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path)
    assert hosts.play().returncode == 0
    first = hosts.rotation("a")["value"]
    for host in ("a", "b"):
        hosts.serve(host, 1)
    assert hosts.play(django_app_rotate=[NAME]).returncode == 0
    hosts.serve("a", 2)
    # The second host is on hold until long after the old password's time.
    store = tmp_path / "a/etc/rotations.json"
    store.write_text(store.read_text().replace('"until": "20', '"until": "19'))
    played = hosts.play(django_app_rotate=[NAME])
    assert played.returncode != 0
    assert "can have no new value yet" in played.stdout
    assert first not in played.stdout
    assert [entry["value"] for entry in hosts.rotation("a")["old"]] == [first]
    hosts.serve("b", 2)
    assert hosts.play(django_app_rotate=[NAME]).returncode == 0
    assert hosts.rotation("a") == hosts.rotation("b")
    assert [entry["login"] for entry in [hosts.rotation("a"), *hosts.rotation("a")["old"]]] == [1, 2]
