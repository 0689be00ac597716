"""The role redis: templates and refusals, rendered for the corners."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

ROLE = Path(__file__).parents[2] / "roles/redis"
PASSWORD = "correct horse battery staple"


def load(path: str) -> Any:
    return DataLoader().load_from_file(str(ROLE / path), trusted_as_template=True)


def templar(**variables: Any) -> Templar:
    known = {
        **load("vars/main.yml"),
        **load("defaults/main.yml"),
        "ansible_managed": "Ansible managed",
        "ansible_facts": {"distribution": "Debian", "distribution_major_version": "13"},
        "django_app": {"name": "shop"},
        "redis_password": PASSWORD,
        # Made by a filter of the collection, which has tests of its own.
        "__redis_sandbox": ["ProtectSystem=strict"],
    }
    return Templar(DataLoader(), variables={**known, **variables})


def lines(template: str, **variables: Any) -> list[str]:
    """Return a template's lines that are neither empty nor comments."""
    text = str(templar(**variables).template(trust_as_template((ROLE / "templates" / template).read_text())))
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def accepts(task: str, **variables: Any) -> bool:
    """Say whether all conditions of an assert task hold, found by a part of its name."""
    (conditions,) = (
        entry["ansible.builtin.assert"]["that"] for entry in load("tasks/validate.yml") if task in entry["name"]
    )
    known = templar(**variables)
    return all(
        known.evaluate_conditional(condition)
        for condition in ([conditions] if isinstance(conditions, str) else conditions)
    )


def test_the_socket_is_the_only_way_in() -> None:
    text = lines("redis.conf.j2")
    assert "port 0" in text
    assert "unixsocket /run/redis-shop/redis.sock" in text
    assert "unixsocketperm 770" in text


NETWORK = {"redis_port": 16379, "redis_listen_addresses": ["10.0.0.3", "fd00::3"]}


def test_without_a_port_there_is_no_network() -> None:
    assert not [line for line in lines("redis.conf.j2") if line.startswith(("tls-", "bind"))]
    unit = lines("redis.service.j2")
    assert [line for line in unit if line.startswith("LoadCredential=")] == [
        "LoadCredential=redis.conf:/etc/redis-shop/redis.conf",
        "LoadCredential=users.acl:/etc/redis-shop/users.acl",
    ]
    assert "After=network-online.target" not in unit


def test_other_hosts_come_by_tls_alone_and_to_named_addresses() -> None:
    text = lines("redis.conf.j2", **NETWORK)
    assert {"port 0", "tls-port 16379", "bind 10.0.0.3 fd00::3", "tls-auth-clients no"} <= set(text)
    assert "tls-key-file /run/credentials/redis-shop.service/key.pem" in text
    unit = lines("redis.service.j2", **NETWORK, redis_tls_key="/etc/keys/redis.pem")
    assert "LoadCredential=key.pem:/etc/keys/redis.pem" in unit
    assert "After=network-online.target" in unit


@pytest.mark.parametrize(
    ("wrong", "accepted"),
    [
        ({}, True),
        ({"redis_port": 0, "redis_listen_addresses": []}, True),
        ({"redis_port": 80}, False),
        ({"redis_port": 70000}, False),
        ({"redis_listen_addresses": []}, False),
        ({"redis_listen_addresses": ["0.0.0.0"]}, False),
        ({"redis_listen_addresses": ["10.0.0.3", "::"]}, False),
        ({"redis_listen_addresses": ["*"]}, False),
        ({"redis_listen_addresses": ["redis.example.org"]}, False),
    ],
)
def test_a_port_needs_addresses_by_number(wrong: dict[str, Any], accepted: bool) -> None:
    assert accepts("listens nowhere or everywhere", **{**NETWORK, **wrong}) is accepted


def test_without_a_group_nobody_but_root_reaches_the_socket() -> None:
    assert "Group=shop" in lines("redis.service.j2", redis_group="shop")
    assert not [line for line in lines("redis.service.j2", redis_group="") if line.startswith("Group=")]


def test_a_channel_layer_forgets_nothing_and_keeps_nothing() -> None:
    text = lines("redis.conf.j2", redis_maxmemory="64mb")
    assert {"maxmemory 64mb", "maxmemory-policy noeviction", 'save ""', "appendonly no"} <= set(text)


def test_the_only_user_has_a_hashed_password() -> None:
    default, user = lines("users.acl.j2")
    assert default.startswith("user default off ")
    assert user.startswith(f"user shop on #{hashlib.sha256(PASSWORD.encode()).hexdigest()} ~asgi* &asgi* -@all +")
    assert PASSWORD not in user


def test_old_passwords_are_accepted_beside_it_as_hashes() -> None:
    old = ["the one before, long enough", PASSWORD]
    words = lines("users.acl.j2", redis_old_passwords=old)[1].split()
    # In an order that is always the same, or each run would find a change.
    assert [word for word in words if word.startswith("#")] == sorted(
        f"#{hashlib.sha256(password.encode()).hexdigest()}" for password in (PASSWORD, old[0])
    )
    assert accepts("short password", redis_old_passwords=old)
    assert not accepts("short password", redis_old_passwords=["short"])


def test_the_user_may_not_administer() -> None:
    words = lines("users.acl.j2")[1].split()
    assert not [word for word in words if word.startswith("+@")]
    assert not {"+flushall", "+config", "+keys", "+acl", "+get", "+set", "allkeys", "allchannels", "nopass"} & set(
        words
    )


def test_debian_12_gets_no_command_that_it_refuses() -> None:
    older = {"distribution": "Debian", "distribution_major_version": "12"}
    assert "+client|setinfo" in lines("users.acl.j2")[1].split()
    assert "+client|setinfo" not in lines("users.acl.j2", ansible_facts=older)[1].split()


def test_the_group_may_reach_the_socket() -> None:
    assert "Group=shop" in lines("redis.service.j2")
    assert "Group=web" in lines("redis.service.j2", django_app={"name": "shop", "user": "web"})
    assert "Group=www" in lines("redis.service.j2", django_app={"name": "shop", "user": "web", "group": "www"})
    assert "Group=own" in lines("redis.service.j2", redis_group="own")


def test_no_secret_is_in_the_unit() -> None:
    text = "\n".join(lines("redis.service.j2"))
    assert PASSWORD not in text
    assert hashlib.sha256(PASSWORD.encode()).hexdigest() not in text


@pytest.mark.parametrize("name", ["Shop", "2shop", "", "a-b", "a" * 25, "server", "sentinel", "shop\n"])
def test_impossible_names_are_refused(name: str) -> None:
    assert accepts("impossible name", redis_name="shop_2")
    assert not accepts("impossible name", redis_name=name)


@pytest.mark.parametrize("group", ["a b", "$(id)", "a;b", "shop\n"])
def test_impossible_groups_are_refused(group: str) -> None:
    assert accepts("impossible group", redis_group="www-data")
    assert accepts("impossible group", redis_group="")
    assert not accepts("impossible group", redis_group=group)


@pytest.mark.parametrize("amount", ["0", "", "1tb", "-1mb", "12 mb", "mb", "64mb\n"])
def test_impossible_amounts_are_refused(amount: str) -> None:
    assert all(accepts("amount of memory", redis_maxmemory=good) for good in ("128mb", "1GB", "1048576", "5k"))
    assert not accepts("amount of memory", redis_maxmemory=amount)


@pytest.mark.parametrize(
    ("limit", "is_one"), [("", True), ("512M", True), ("40%", True), ("0", False), ("101%", False)]
)
def test_a_limit_that_systemd_would_drop_is_refused(limit: str, is_one: bool) -> None:
    assert accepts("limits", redis_memory_max=limit) == is_one


@pytest.mark.parametrize("password", ["", "short"])
def test_a_missing_or_short_password_is_refused(password: str) -> None:
    assert accepts("short password")
    assert not accepts("short password", redis_password=password)


def test_specs_and_defaults_agree() -> None:
    options = load("meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    defaults = load("defaults/main.yml")
    assert options.keys() - {"django_app"} == defaults.keys()
    fixed = {name: default for name, default in defaults.items() if "{{" not in str(default)}
    assert {name: options[name].get("default") for name in fixed} == fixed
