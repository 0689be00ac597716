"""The role firewall: its rules and refusals, rendered for the corners, and its scripts where they need no host."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import pytest
from ansible_collections.quintet.django.plugins.test.within import is_network, is_within
from rendering import ROOT, Role

FILES = ROOT / "roles/firewall/files"
LOOK = {"stdout_lines": ["controller 10.9.0.1 50000 10.0.0.5 2222", "port 22", "port 2222", "port 22"]}
DATABASE = {"name": "PostgreSQL", "ports": [5432, 6432], "from": ["10.0.0.11", "fd00::12"]}


def role(**given: Any) -> Role:
    return Role("firewall", **{"__firewall_look": LOOK, **given})


def rules(**given: Any) -> list[str]:
    """Return the lines of the chain, without comments."""
    text = role(**given).render("wanted.nft.j2")
    chain = re.search(r"chain input \{\n(.*?)\n    \}", text, re.S)
    assert chain, text
    return [line.strip() for line in chain[1].splitlines() if line.strip() and not line.strip().startswith("#")]


def sets(**given: Any) -> dict[str, str]:
    """Return the sets that have elements, by name."""
    text = role(**given).render("wanted.nft.j2")
    return dict(re.findall(r"set (\w+) \{[^}]*elements = \{ ([^}]*) \}", text))


def accepting(**given: Any) -> list[str]:
    """Return the rules for services and SSH."""
    return [rule for rule in rules(**given) if " dport {" in rule]


def test_what_is_not_named_is_dropped() -> None:
    chain = rules()
    assert chain[0] == "type filter hook input priority filter; policy drop;"
    assert accepting() == ['tcp dport { 22, 2222 } accept comment "SSH"']
    # One table, and this one: what others keep is theirs.
    text = role().render("wanted.nft.j2")
    assert set(re.findall(r"^(?:delete )?table .*?(?= \{|$)", text, re.M)) == {
        "table inet quintet_firewall",
        "delete table inet quintet_firewall",
    }
    assert "flush" not in text


def test_services_are_open_to_those_that_are_named() -> None:
    given = {
        "firewall_services": [DATABASE],
        "firewall_extra_services": [{"name": "own", "ports": ["81"], "from": ["anywhere"]}],
    }
    assert accepting(**given) == [
        'tcp dport { 22, 2222 } accept comment "SSH"',
        'ip saddr @service1_ipv4 tcp dport { 5432, 6432 } accept comment "PostgreSQL"',
        'ip6 saddr @service1_ipv6 tcp dport { 5432, 6432 } accept comment "PostgreSQL"',
        'tcp dport { 81 } accept comment "own"',
    ]
    assert sets(**given) == {"service1_ipv4": "10.0.0.11", "service1_ipv6": "fd00::12"}


def test_without_anybody_a_service_is_closed() -> None:
    assert len(accepting(firewall_services=[{**DATABASE, "from": []}, {**DATABASE, "ports": []}])) == 1


def test_two_services_of_one_name_stay_apart() -> None:
    given = [{**DATABASE, "from": ["10.0.0.1"]}, {**DATABASE, "ports": [1], "from": ["10.0.0.2"]}]
    assert sets(firewall_services=given) == {"service1_ipv4": "10.0.0.1", "service2_ipv4": "10.0.0.2"}


def test_a_protocol_is_its_own() -> None:
    quic = {"name": "HTTP/3", "ports": [443], "from": ["anywhere"], "protocol": "udp"}
    assert accepting(firewall_services=[quic])[1] == 'udp dport { 443 } accept comment "HTTP/3"'


def test_peers_may_go_on_and_open_nothing() -> None:
    chain = rules(firewall_peers=["10.0.0.7"])
    assert sets(firewall_peers=["10.0.0.7"]) == {"peers_ipv4": "10.0.0.7"}
    (rule,) = [rule for rule in chain if "@peers_ipv4" in rule]
    assert rule == "ip saddr @peers_ipv4 tcp flags & (syn | ack) == ack accept"
    assert chain.index("ct state invalid drop") < chain.index(rule)


def test_ssh_is_where_it_is_told_and_open_to_whom_it_is_told() -> None:
    assert accepting(firewall_ssh_ports=[2200]) == ['tcp dport { 2200 } accept comment "SSH"']
    assert accepting(__firewall_look={"stdout_lines": ["pending"]}) == ['tcp dport { 22 } accept comment "SSH"']
    given = {"firewall_ssh_from": ["10.9.0.0/16"]}
    assert accepting(**given)[0] == 'ip saddr @ssh_ipv4 tcp dport { 22, 2222 } accept comment "SSH"'
    assert sets(**given) == {"ssh_ipv4": "10.9.0.0/16"}


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"firewall_services": [{**DATABASE, "name": 'x" accept'}]}, "cannot be the name of a service"),
        ({"firewall_services": [{**DATABASE, "ports": [0]}]}, "PostgreSQL: 0 is no port"),
        ({"firewall_extra_services": [{**DATABASE, "ports": [65536]}]}, "PostgreSQL: 65536 is no port"),
        ({"firewall_services": [{**DATABASE, "from": ["db.example.org"]}]}, "'db.example.org' is no address"),
        ({"firewall_services": [{**DATABASE, "from": ["10.0.0.1/8"]}]}, "'10.0.0.1/8' is no address"),
        ({"firewall_ssh_from": []}, "is empty, which would keep everybody out"),
        ({"firewall_ssh_from": ["office"]}, "'office' is no address"),
        ({"firewall_peers": ["anywhere"]}, "'anywhere' is no address"),
        ({"firewall_ssh_ports": [-1]}, "-1 is no port"),
        ({"firewall_confirm_seconds": 5}, "Write 15 or more"),
    ],
)
def test_what_could_not_be_a_rule_is_refused(given: dict[str, Any], fault: str) -> None:
    assert fault in role(**given).render("faults.j2")


def test_what_can_be_rules_is_taken() -> None:
    given = {
        "firewall_services": [DATABASE],
        "firewall_ssh_from": ["anywhere", "10.0.0.0/8"],
        "firewall_peers": ["fd00::1"],
    }
    assert role(**given).render("faults.j2").strip() in ("", "None")


@pytest.mark.parametrize(
    ("given", "kept_out"),
    [
        ({}, False),
        ({"firewall_ssh_from": ["10.9.0.0/24"]}, False),
        ({"firewall_ssh_from": ["10.8.0.0/24", "fd00::/8"]}, True),
        ({"firewall_ssh_ports": [22]}, True),
        ({"firewall_ssh_ports": [2222]}, False),
        # Not by SSH: nothing of it can be cut.
        ({"firewall_ssh_from": ["10.8.0.0/24"], "__firewall_look": {"stdout_lines": ["port 22"]}}, False),
    ],
)
def test_the_controller_is_never_kept_out(given: dict[str, Any], kept_out: bool) -> None:
    from rendering import load

    tasks: Any = load(ROOT / "roles/firewall/tasks/configure.yml")
    (conditions,) = (
        task["ansible.builtin.assert"]["that"] for task in tasks if "keep the controller out" in task["name"]
    )
    assert all(role(**given).evaluate(condition) for condition in conditions) is not kept_out


@pytest.mark.parametrize("script", sorted(FILES.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_scripts(script: Any) -> None:
    subprocess.run(["sh", "-n", str(script)], check=True)


def test_the_host_sees_by_which_connection_it_is_asked() -> None:
    # As an ancestor's environment has it, which sudo has taken from the command's own.
    look = (FILES / "look.sh").read_text()
    asked = ["env", "-u", "SSH_CONNECTION", "sh", "-c", look, "sh", "no.service", "/nonexistent"]
    outer = ["sh", "-c", '"$@"; exit $?', "sh", *asked]
    done = subprocess.run(
        outer,
        env={"SSH_CONNECTION": "10.9.0.1 50000 10.0.0.5 2222", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "controller 10.9.0.1 50000 10.0.0.5 2222" in done.stdout.splitlines()
    assert "pending" in done.stdout.splitlines()


def test_addresses_and_networks() -> None:
    assert [text for text in ("10.0.0.1", "10.0.0.0/8", "fd00::/8", "10.0.0.1/8", "x", "") if is_network(text)] == [
        "10.0.0.1",
        "10.0.0.0/8",
        "fd00::/8",
    ]
    assert is_within("10.0.0.7", ["fd00::/8", "10.0.0.0/24"])
    assert is_within("fe80::1%eth0", ["fe80::/10"])
    assert is_within("::ffff:10.0.0.7", ["10.0.0.7"])
    assert not is_within("10.0.1.7", ["10.0.0.0/24"])
