"""The inventories that people copy: they parse, their apps are right, and the command of the README accepts them."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import pytest
from ansible_collections.quintet.django.plugins.filter.topology import topology
from ansible_collections.quintet.django.plugins.module_utils.apps import load_schema, normalize, problems
from ansible_collections.quintet.django.plugins.module_utils.source import source_problems
from rendering import ROOT

ENVIRONMENT = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}


def listed(inventory: str) -> dict[str, Any]:
    command = ["ansible-inventory", "-i", inventory, "--list"]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("inventory", ["prod", "inventories/demo"])
def test_one_host_is_everything_and_its_apps_are_right(inventory: str) -> None:
    found = listed(inventory)
    (host,) = found["_meta"]["hostvars"]
    for group in ("edge", "app", "database", "redis"):
        assert found[group]["hosts"] == [host]
    apps = found["_meta"]["hostvars"][host]["django_apps"]
    assert problems(apps, "django_apps", load_schema()) == []
    filled = [normalize(app, load_schema()) for app in apps]
    assert source_problems(filled, ["django_apps[0]"], str(ROOT / inventory)) == []


def test_a_cluster_has_each_part_on_hosts_of_its_own_and_right_apps() -> None:
    found = listed("inventories/cluster")
    hosts = found["_meta"]["hostvars"]
    groups = {name: found[name]["hosts"] for name in ("edge", "app", "database", "redis")}
    where = topology(groups, hosts)
    assert (where["edge_apart"], where["database"], where["redis"]) == (True, "10.0.0.21", "10.0.0.31")
    assert [entry["server"] for entry in where["app_servers"].values()] == ["10.0.0.11:443", "10.0.0.12:443"]
    assert problems(hosts["app1"]["django_apps"], "django_apps", load_schema(), groups["app"]) == []


def test_the_command_of_the_first_page_accepts_prod() -> None:
    command = ["ansible-playbook", "site.yml", "-i", "prod", "--syntax-check"]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
