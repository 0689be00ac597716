"""Which apps' passwords a playbook tells Redis and PostgreSQL, before their next generations log in with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

PLAYBOOKS = Path(__file__).parents[2] / "playbooks"
APP: dict[str, Any] = {
    "domains": ["a.test"],
    "source": {"directory": "."},
    "asgi": "config.asgi:application",
    "database_login": "password",
}
# By the group of its host: the name of the password, and another name for it on the command line.
SERVERS = {"redis": ("CHANNEL_LAYER_PASSWORD", "channel_layer"), "database": ("DATABASE_PASSWORD", "database")}
servers = pytest.mark.parametrize("server", SERVERS)


def told(playbook: str, server: str, unused: dict[str, list[str]], **given: Any) -> list[str]:
    """Return the apps for which the playbook sets up what is behind their password."""
    plays = DataLoader().load_from_file(str(PLAYBOOKS / playbook), trusted_as_template=True)
    (play,) = (play for play in plays if play["hosts"] == server)
    include = play["tasks"][0]["block"][0]
    assert "tasks/end_changes.yml" in str(play["tasks"][0]["rescue"])
    known = {
        "django_apps": [{**APP, "name": "chat"}, {**APP, "name": "plain"}],
        # The first has not come as far as that.
        "groups": {"app": ["gone", "one"]},
        "hostvars": {"gone": {}, "one": {"django_app_unused": unused, "django_app_rotations": {}}},
    }
    derived = DataLoader().load_from_file(str(PLAYBOOKS / "roles/topology/vars/main.yml"), trusted_as_template=True)
    templar = Templar(DataLoader(), variables={**known, **derived, **play["vars"], **include["vars"], **given})
    return [app["name"] for app in templar.template(include["loop"])]


@servers
@pytest.mark.parametrize("given", [{}, {"app": "chat"}])
def test_a_deploy_tells_what_an_earlier_run_made_and_nothing_uses(server: str, given: dict[str, str]) -> None:
    name, _ = SERVERS[server]
    assert told("deploy.yml", server, {"chat": [name], "plain": ["ANOTHER"]}, **given) == ["chat"]
    assert told("deploy.yml", server, {"chat": [], "plain": []}, **given) == []


@servers
def test_a_rotation_of_another_secret_tells_it_too(server: str) -> None:
    name, word = SERVERS[server]
    asked = {"app": "chat", "secret": "SECRET_KEY"}
    assert told("rotate.yml", server, {"chat": [name]}, **asked) == ["chat"]
    assert told("rotate.yml", server, {"chat": []}, **asked) == []
    # Also that old values are good no longer.
    assert told("rotate.yml", server, {"chat": []}, **{**asked, "secret": word}) == ["chat"]
