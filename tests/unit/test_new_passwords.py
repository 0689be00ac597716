"""Which apps' passwords a playbook tells Redis, before their next generations log in with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

PLAYBOOKS = Path(__file__).parents[2] / "playbooks"
APP: dict[str, Any] = {"domains": ["a.test"], "source": {"directory": "."}, "asgi": "config.asgi:application"}


def told(playbook: str, unused: dict[str, list[str]], **given: Any) -> list[str]:
    """Return the apps for which the playbook includes the role redis."""
    plays = DataLoader().load_from_file(str(PLAYBOOKS / playbook), trusted_as_template=True)
    (play,) = (play for play in plays if play["hosts"] == "redis")
    include = play["tasks"][0]["block"][0]
    assert include["ansible.builtin.include_role"] == {"name": "quintet.django.redis"}
    known = {
        "django_apps": [{**APP, "name": "chat"}, {**APP, "name": "plain"}],
        # The first has not come as far as that.
        "groups": {"app": ["gone", "one"]},
        "hostvars": {"gone": {}, "one": {"django_app_unused": unused, "django_app_rotations": {}}},
    }
    templar = Templar(DataLoader(), variables={**known, **play["vars"], **include["vars"], **given})
    return [app["name"] for app in templar.template(include["loop"])]


@pytest.mark.parametrize("given", [{}, {"app": "chat"}])
def test_a_deploy_tells_what_an_earlier_run_made_and_nothing_uses(given: dict[str, str]) -> None:
    unused = {"chat": ["CHANNEL_LAYER_PASSWORD"], "plain": []}
    assert told("deploy.yml", unused, **given) == ["chat"]
    assert told("deploy.yml", {"chat": [], "plain": []}, **given) == []


def test_a_rotation_of_another_secret_tells_it_too() -> None:
    asked = {"app": "chat", "secret": "SECRET_KEY"}
    assert told("rotate.yml", {"chat": ["CHANNEL_LAYER_PASSWORD"]}, **asked) == ["chat"]
    assert told("rotate.yml", {"chat": []}, **asked) == []
    # Also that old values are good no longer.
    assert told("rotate.yml", {"chat": []}, **{**asked, "secret": "channel_layer"}) == ["chat"]
