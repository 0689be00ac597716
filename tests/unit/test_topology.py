"""Where the parts of a site are, from the groups of an inventory."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.quintet.django.plugins.filter.topology import topology

ONE = {part: ["web1"] for part in ("edge", "app", "database", "redis")}
SEVERAL = {"edge": ["edge1"], "app": ["app1", "app2"], "database": ["db1"], "redis": ["redis1"], "all": ["other"]}
VARIABLES: dict[str, dict[str, Any]] = {
    "web1": {"ansible_host": "web1.example.org"},
    "edge1": {"ansible_host": "192.0.2.1", "quintet_address": "10.0.0.1"},
    "app1": {"ansible_host": "10.0.0.11"},
    "app2": {"quintet_address": "fd00::12"},
    "db1": {"ansible_host": "10.0.0.21"},
    "redis1": {"ansible_host": "10.0.0.31"},
}


def test_one_host_needs_no_address() -> None:
    assert topology(ONE, VARIABLES) == {
        "apart": False,
        "tls": False,
        "addresses": {},
        "edge_apart": False,
        "app_servers": {},
        "database_apart": False,
        "database": "",
        "redis_apart": False,
        "redis": "",
    }


def test_hosts_that_are_in_every_group_have_a_site_each() -> None:
    found = topology({part: ["web1", "app1"] for part in ONE}, VARIABLES)
    assert not [name for name, value in found.items() if value]


def test_several_hosts_know_each_other_by_their_private_addresses() -> None:
    found = topology(SEVERAL, VARIABLES)
    assert found["addresses"] == {
        "app1": "10.0.0.11",
        "app2": "fd00::12",
        "db1": "10.0.0.21",
        "edge1": "10.0.0.1",
        "redis1": "10.0.0.31",
    }
    assert (found["apart"], found["edge_apart"]) == (True, True)
    assert [entry["server"] for entry in found["app_servers"].values()] == ["10.0.0.11:443", "[fd00::12]:443"]
    assert {(entry["max_fails"], entry["fail_timeout"]) for entry in found["app_servers"].values()} == {(1, 5)}
    assert topology(SEVERAL, VARIABLES, "8443")["app_servers"]["app1"]["server"] == "10.0.0.11:8443"
    assert (found["database"], found["redis"]) == ("10.0.0.21", "10.0.0.31")


def test_hosts_reach_each_other_by_tls_unless_told_otherwise() -> None:
    assert topology(SEVERAL, VARIABLES)["tls"] is True
    assert topology(SEVERAL, VARIABLES, 80, "plain")["tls"] is False
    # A site on one host has nothing between hosts, whatever is said.
    assert topology(ONE, VARIABLES, 80, "plain") == topology(ONE, VARIABLES)


def test_nothing_goes_through_the_internet_in_the_open() -> None:
    public = {**VARIABLES, "app1": {"ansible_host": "8.8.8.8"}}
    with pytest.raises(
        AnsibleFilterError, match=r"plain, and reached by an address of the internet: app1 \(8\.8\.8\.8\)"
    ):
        topology(SEVERAL, public, 80, "plain")
    assert topology(SEVERAL, public)["app_servers"]["app1"]["server"] == "8.8.8.8:443"
    # A database is reached by TLS in any case.
    database = {**VARIABLES, "db1": {"ansible_host": "8.8.8.8"}}
    assert topology(SEVERAL, database, 80, "plain")["database"] == "8.8.8.8"
    with pytest.raises(AnsibleFilterError, match="quintet_edge_to_apps: 'off' is no way from an edge to app hosts"):
        topology(SEVERAL, VARIABLES, 80, "off")


def test_several_edges_ask_the_same_app_hosts() -> None:
    found = topology({**SEVERAL, "edge": ["edge1", "redis1"]}, VARIABLES)
    assert found == topology(SEVERAL, VARIABLES)


def test_what_is_with_one_of_several_apps_is_apart_for_all() -> None:
    found = topology({**SEVERAL, "redis": ["app1"]}, VARIABLES)
    assert (found["redis_apart"], found["redis"]) == (True, "10.0.0.11")


def test_what_is_with_the_only_app_goes_by_its_sockets() -> None:
    found = topology({**SEVERAL, "app": ["app1"], "redis": ["app1"], "database": ["app1"]}, VARIABLES)
    assert (found["redis"], found["database"], found["edge_apart"]) == ("", "", True)


def test_a_site_without_a_part_has_none() -> None:
    found = topology({"app": ["web1"]}, VARIABLES)
    assert not [name for name, value in found.items() if value]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"database": ["db1", "app1"]}, "group database: has db1, app1"),
        ({"redis": ["redis1", "app1"]}, "group redis: has redis1, app1"),
        ({"edge": ["app1"]}, "groups edge and app: app1 in both"),
        ({"edge": ["app1", "app2"]}, "groups edge and app: app1, app2 in both"),
        ({"app": ["web1"]}, "quintet_address: web1 is reached by 'web1.example.org', which is no address"),
    ],
)
def test_groups_that_make_no_site_are_refused(changed: dict[str, list[str]], message: str) -> None:
    with pytest.raises(AnsibleFilterError, match=message):
        topology({**SEVERAL, **changed}, VARIABLES)
