"""The role postgresql: templates, sizes and refusals, rendered for the corners."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

ROLE = Path(__file__).parents[2] / "roles/postgresql"
NETWORK_ENTRY = {
    "type": "hostssl",
    "database": "shop",
    "user": "shop",
    "address": "10.0.0.7/32",
    "method": "scram-sha-256",
}


def load(path: str) -> Any:
    return DataLoader().load_from_file(str(ROLE / path), trusted_as_template=True)


def templar(**variables: Any) -> Templar:
    known = {**load("vars/main.yml"), **load("defaults/main.yml"), "ansible_managed": "Ansible managed"}
    known["ansible_facts"] = {"distribution": "Debian", "distribution_major_version": "13", "memtotal_mb": 4096}
    return Templar(DataLoader(), variables={**known, **variables})


def value(name: str, **variables: Any) -> Any:
    return templar(**variables).template(trust_as_template("{{ " + name + " }}"))


def lines(template: str, **variables: Any) -> list[str]:
    """Return a template's lines that are neither empty nor comments."""
    text = str(templar(**variables).template(trust_as_template((ROLE / "templates" / template).read_text())))
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def accepts(task: str, **variables: Any) -> bool:
    """Say whether all conditions of an assert task hold, found by a part of its name."""
    tasks = [entry for path in ("validate", "database") for entry in load(f"tasks/{path}.yml")]
    (conditions,) = (entry["ansible.builtin.assert"]["that"] for entry in tasks if task in entry["name"])
    known = templar(**variables)
    return all(
        known.evaluate_conditional(condition)
        for condition in ([conditions] if isinstance(conditions, str) else conditions)
    )


def test_only_administration_and_apps_enter_unless_told_otherwise() -> None:
    assert lines("pg_hba.conf.j2") == [
        "local all postgres peer map=quintet",
        # Before the line that lets users of the operating system in.
        "local samerole +quintet-by-password scram-sha-256",
        "local samerole all peer",
    ]
    assert lines("pg_ident.conf.j2") == ["quintet postgres postgres", "quintet root postgres"]


def test_further_access_comes_last() -> None:
    entries = [
        NETWORK_ENTRY,
        {"type": "local", "database": "replication", "user": "copy", "method": "peer", "options": "map=x"},
    ]
    assert lines("pg_hba.conf.j2", postgresql_hba=entries)[3:] == [
        "hostssl shop shop 10.0.0.7/32 scram-sha-256",
        "local replication copy peer map=x",
    ]


def test_nothing_listens_by_default() -> None:
    assert lines("quintet.conf.j2")[0] == "listen_addresses = ''"
    assert (
        lines("quintet.conf.j2", postgresql_listen_addresses=["10.0.0.5", "::1"])[0]
        == "listen_addresses = '10.0.0.5,::1'"
    )


def test_further_settings_are_quoted() -> None:
    given = {"log_line_prefix": "it's %m", "jit": False, "random_page_cost": 1.1}
    assert lines("quintet.conf.j2", postgresql_settings=given)[-3:] == [
        "log_line_prefix = 'it''s %m'",
        "jit = 'false'",
        "random_page_cost = '1.1'",
    ]


@pytest.mark.parametrize(
    ("memory", "shared", "cache", "maintenance"),
    [
        (480, "128MB", "256MB", "64MB"),
        (4096, "512MB", "2048MB", "256MB"),
        # A few megabytes more or less after a kernel's update must not restart the server.
        (4200, "512MB", "2048MB", "256MB"),
        (524288, "8192MB", "262144MB", "1024MB"),
    ],
)
def test_memory_follows_the_host(memory: int, shared: str, cache: str, maintenance: str) -> None:
    facts = {"memtotal_mb": memory}
    assert value("postgresql_shared_buffers", ansible_facts=facts) == shared
    assert value("postgresql_effective_cache_size", ansible_facts=facts) == cache
    assert value("postgresql_maintenance_work_mem", ansible_facts=facts) == maintenance


def test_names_come_from_the_app() -> None:
    assert value("postgresql_database_user", django_app={"name": "shop"}) == "shop"
    assert value("postgresql_database_user", django_app={"name": "shop", "user": "web"}) == "web"
    assert value("postgresql_database_user", postgresql_database_name="shop") == "shop"


def test_another_user_acts_as_the_owner() -> None:
    own = value("__postgresql_close_queries", django_app={"name": "shop"})
    other = value("__postgresql_close_queries", django_app={"name": "shop", "user": "web"})
    assert [query.split()[0] for query in own] == ["SELECT", "REVOKE", "REVOKE"]
    assert other[3:] == ['ALTER ROLE "web" IN DATABASE "shop" SET role TO "shop"']


@pytest.mark.parametrize("name", ["shop", "a", "shop_2"])
def test_names_of_apps_are_accepted(name: str) -> None:
    assert accepts("names that belong to PostgreSQL", __postgresql_name=name)


@pytest.mark.parametrize("name", ["Shop", "2shop", "", 'sh"op', "pg_shop", "postgres", "samerole", "a" * 64, "shop\n"])
def test_other_names_are_refused(name: str) -> None:
    assert not accepts("names that belong to PostgreSQL", __postgresql_name=name)


def test_passwords_take_the_place_of_peer_authentication() -> None:
    logins = {"shop_1": "secret", "shop_2": ""}
    assert value("postgresql_database_peer") is True
    assert value("postgresql_database_peer", postgresql_database_logins=logins) is False
    roles = [task for task in load("tasks/database_objects.yml") if "community.postgresql.postgresql_user" in task]
    flags = [task["community.postgresql.postgresql_user"]["role_attr_flags"] for task in roles]

    def can_login(**given: Any) -> list[bool]:
        return [str(templar(**given).template(text)).startswith("LOGIN,") for text in flags]

    same, other = {"name": "shop"}, {"name": "shop", "user": "web"}
    assert can_login(django_app=same)[0] is True
    assert can_login(django_app=other) == [False, True]
    assert can_login(django_app=same, postgresql_database_logins=logins)[0] is False
    assert can_login(django_app=other, postgresql_database_logins=logins) == [False, False]
    both = {"postgresql_database_logins": logins, "postgresql_database_peer": True}
    assert can_login(django_app=same, **both)[0] is True
    assert can_login(django_app=other, **both) == [False, True]


def test_a_login_has_a_name_of_its_own() -> None:
    for name, is_accepted in (("shop_1", True), ("shop", False), ("web", False)):
        given = {"django_app": {"name": "shop", "user": "web"}, "postgresql_database_logins": {name: "secret"}}
        assert accepts("logins that are another role", **given) is is_accepted


def test_settings_with_a_variable_of_their_own_are_refused() -> None:
    assert accepts("variable of their own", postgresql_settings={"jit": False})
    assert not accepts("variable of their own", postgresql_settings={"work_mem": "1MB"})


@pytest.mark.parametrize("settings", [{"a b": 1}, {"jit'": 1}, {"jit": "on\nfsync = off"}])
def test_settings_that_break_the_file_are_refused(settings: dict[str, Any]) -> None:
    assert not accepts("end a line", postgresql_settings=settings)


@pytest.mark.parametrize(
    "change",
    [
        {"address": ""},
        {"type": "local"},
        {"address": "10.0.0.7 255.0.0.0"},
        {"user": "a b"},
        {"database": ""},
        {"options": "a\nb"},
    ],
)
def test_entries_that_are_no_line_are_refused(change: dict[str, str]) -> None:
    assert accepts("lines of pg_hba.conf", item=NETWORK_ENTRY)
    assert not accepts("lines of pg_hba.conf", item={**NETWORK_ENTRY, **change})


def test_specs_and_defaults_agree() -> None:
    specs = load("meta/argument_specs.yml")["argument_specs"]
    options = {
        name: spec for entry in specs.values() for name, spec in entry["options"].items() if name != "django_app"
    }
    defaults = load("defaults/main.yml")
    assert options.keys() == defaults.keys()
    fixed = {name: default for name, default in defaults.items() if "{{" not in str(default)}
    assert {name: options[name].get("default") for name in fixed} == fixed
    assert not [name for name in defaults.keys() - fixed.keys() if "default" in options[name]]


def test_apps_of_other_hosts_come_by_tls_and_with_a_password() -> None:
    network = {"postgresql_listen_addresses": ["10.0.0.5"], "postgresql_clients": ["10.0.0.11", "fd00::12"]}
    assert not [line for line in lines("quintet.conf.j2") if line.startswith("ssl")]
    assert "ssl = 'true'" in lines("quintet.conf.j2", **network)
    assert "ssl_ca_file = '/etc/postgresql/17/main/quintet-tls/authority.pem'" in lines("quintet.conf.j2", **network)
    rules = lines("pg_hba.conf.j2", **network, postgresql_client_databases=["shop", "chat"])
    assert [rule for rule in rules if rule.startswith("host")] == [
        f"hostssl {rule}"
        for address in ("10.0.0.11/32", "fd00::12/128")
        for rule in (
            f"samerole +quintet-by-certificate {address} cert",
            f"samerole +quintet-by-password {address} scram-sha-256",
            f"shop +shop:app {address} scram-sha-256",
            f"chat +chat:app {address} scram-sha-256",
        )
    ]
    # Of PgBouncer, as the login that its client has shown to be; before those who need no password.
    assert [rule for rule in rules if rule.startswith("local")] == [
        *lines("pg_hba.conf.j2")[:2],
        "local shop +shop:app scram-sha-256",
        "local chat +chat:app scram-sha-256",
        lines("pg_hba.conf.j2")[2],
    ]


def test_clients_that_have_gone_are_noticed_unless_told_otherwise() -> None:
    network = {"postgresql_listen_addresses": ["10.0.0.5"]}
    assert not [line for line in lines("quintet.conf.j2") if "keepalives" in line]
    assert "client_connection_check_interval = '5s'" in lines("quintet.conf.j2", **network)
    own = {"tcp_user_timeout": "60s"}
    assert accepts("variable of their own", **network, postgresql_settings=own)
    assert "tcp_user_timeout = '60s'" in lines("quintet.conf.j2", **network, postgresql_settings=own)


@pytest.mark.parametrize(
    ("given", "most", "accepted"),
    [
        ({}, 100, True),
        ({"postgresql_needed_connections": 100}, 100, True),
        ({"postgresql_needed_connections": 101}, 200, True),
        ({"postgresql_needed_connections": 101, "postgresql_max_connections": 150}, 150, True),
        ({"postgresql_needed_connections": 151, "postgresql_max_connections": 150}, 150, False),
    ],
)
def test_there_are_as_many_connections_as_are_needed(given: dict[str, Any], most: int, accepted: bool) -> None:
    assert value("postgresql_max_connections", **given) == most
    assert accepts("fewer connections", **given) is accepted


@pytest.mark.parametrize("name", ["all", "shop,chat", "sh op", "+shop", ""])
def test_only_names_of_databases_become_rules(name: str) -> None:
    assert accepts("databases of clients", postgresql_client_databases=["shop"])
    assert not accepts("databases of clients", postgresql_client_databases=["shop", name])


def test_seconds_become_what_the_server_reads() -> None:
    given = {"statement_seconds": 60, "lock_seconds": 0, "idle_in_transaction_seconds": None}
    assert value("__postgresql_timeouts", postgresql_database_timeouts=given) == {
        "statement_timeout": 60000,
        "lock_timeout": 0,
    }
    given = {"idle_in_transaction_seconds": 5}
    assert value("__postgresql_timeouts", postgresql_database_timeouts=given) == {
        "idle_in_transaction_session_timeout": 5000
    }
    assert value("__postgresql_timeouts") == {}


def test_another_certificate_is_another_configuration() -> None:
    def digest(*results: dict[str, Any]) -> Any:
        return value("__postgresql_tls_digest", __postgresql_tls_files={"results": list(results)})

    assert digest({"checksum": "a"}, {"checksum": "b"}) != digest({"checksum": "a"}, {"checksum": "c"})
    # Without a network it is the name that it was.
    assert (
        digest({"skipped": True})
        == digest()
        == value("__postgresql_tls_digest", __postgresql_tls_files={"skipped": True})
    )
    assert "__postgresql_tls_digest" in load("vars/main.yml")["__postgresql_configuration"]
