"""The role pgbouncer: its files, its refusals, and the list of users that it takes over from PostgreSQL."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from ansible_collections.quintet.django.plugins.modules.pgbouncer_users import is_kept, listed, write
from rendering import Role

GIVEN: dict[str, Any] = {
    "pgbouncer_listen_addresses": ["10.0.0.5"],
    "pgbouncer_clients": ["10.0.0.11", "fd00::12"],
    "pgbouncer_databases": {"shop": {"users": ["shop_1", "shop_2"], "pool_size": 40}, "chat": {"users": ["chat_1"]}},
}


def lines(template: str, **given: Any) -> list[str]:
    text = Role("pgbouncer", **{**GIVEN, **given}).render(template)
    return [line for line in text.splitlines() if line and line[0] not in "#;"]


def accepts(task: str, **given: Any) -> bool:
    role = Role("pgbouncer", **{**GIVEN, **given})
    tasks = DataLoader().load_from_file(str(role.path / "tasks/validate.yml"), trusted_as_template=True)
    (conditions,) = (one["ansible.builtin.assert"]["that"] for one in tasks if task in one["name"])
    templar = Templar(DataLoader(), variables=role.variables)
    return all(
        templar.evaluate_conditional(one) for one in ([conditions] if isinstance(conditions, str) else conditions)
    )


def test_transactions_are_shared_by_tls_and_with_passwords_only() -> None:
    found = lines("pgbouncer.ini.j2")
    assert found[:3] == [
        "[databases]",
        "chat = host=/var/run/postgresql dbname=chat pool_size=20",
        "shop = host=/var/run/postgresql dbname=shop pool_size=40",
    ]
    for line in (
        "listen_addr = 10.0.0.5",
        "unix_socket_dir = ",
        "pool_mode = transaction",
        "auth_type = hba",
        "client_tls_sslmode = require",
    ):
        assert line in found
    # Nobody may ask it for more than a database.
    assert not [line for line in found if line.startswith(("admin_users", "stats_users"))]


def test_each_host_comes_to_each_database_as_its_own_logins() -> None:
    assert lines("hba.conf.j2") == [
        "hostssl chat chat_1 10.0.0.11/32 scram-sha-256",
        "hostssl shop shop_1,shop_2 10.0.0.11/32 scram-sha-256",
        "hostssl chat chat_1 fd00::12/128 scram-sha-256",
        "hostssl shop shop_1,shop_2 fd00::12/128 scram-sha-256",
    ]


def test_other_settings_may_differ() -> None:
    assert "server_login_retry = 9" in lines("pgbouncer.ini.j2", pgbouncer_settings={"server_login_retry": 9})
    assert accepts("variable of their own", pgbouncer_settings={"server_login_retry": 9})


@pytest.mark.parametrize(
    "settings", [{"auth_type": "any"}, {"listen_addr": "*"}, {"a b": 1}, {"logfile": "x\ny"}, {"x": "%include"}]
)
def test_settings_that_open_it_are_refused(settings: dict[str, Any]) -> None:
    assert not accepts("variable of their own", pgbouncer_settings=settings)


def test_the_service_is_nobody_in_postgresql_and_closed_up() -> None:
    found = lines(
        "quintet-pgbouncer.service.j2", pgbouncer_max_clients=4000, pgbouncer_sandbox={"ProtectHome": "read-only"}
    )
    assert "User=quintet-pgbouncer" in found
    for line in (
        "NoNewPrivileges=yes",
        "CapabilityBoundingSet=",
        "ProtectSystem=strict",
        "PrivateUsers=yes",
        "ProtectHome=read-only",
    ):
        assert line in found
    # A descriptor for each client and for each connection of PostgreSQL.
    assert "LimitNOFILE=9024" in found


@pytest.mark.parametrize(
    "change",
    [
        {"pgbouncer_listen_addresses": []},
        {"pgbouncer_listen_addresses": ["0.0.0.0"]},
        {"pgbouncer_listen_addresses": ["*"]},
        {"pgbouncer_clients": ["db.example.org"]},
        {"pgbouncer_port": 80},
    ],
)
def test_it_listens_on_named_addresses_only(change: dict[str, Any]) -> None:
    assert accepts("listen nowhere")
    assert not accepts("listen nowhere", **change)


@pytest.mark.parametrize(
    "databases",
    [
        {"sh op": {"users": ["shop"]}},
        {"all": {"users": ["shop"]}},
        # Its own, for administration.
        {"pgbouncer": {"users": ["shop"]}},
        {"shop": {"users": []}},
        {"shop": {"users": ["all"]}},
        {"shop": {"users": ["a,b"]}},
        {"shop": {"users": ["shop"], "pool_size": 0}},
    ],
)
def test_databases_that_would_be_something_else_are_refused(databases: dict[str, Any]) -> None:
    assert accepts("something else")
    assert not accepts("something else", pgbouncer_databases=databases)


def test_the_list_of_users_quotes_what_it_must() -> None:
    assert listed([("shop_1", "SCRAM-SHA-256$4096:a$b:c"), ('a"b', "x")]) == (
        '"shop_1" "SCRAM-SHA-256$4096:a$b:c"\n"a""b" "x"\n'
    )


def test_the_list_is_replaced_whole_and_for_its_reader_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fchown", lambda *_: None)
    path = tmp_path / "userlist.txt"
    group = path.parent.stat().st_gid
    assert not is_kept(path, "a", group)
    write(path, "a", group)
    assert path.stat().st_mode & 0o777 == 0o640
    assert [one.name for one in tmp_path.iterdir()] == ["userlist.txt"]
    if path.stat().st_uid == 0:
        assert is_kept(path, "a", path.stat().st_gid)
        assert not is_kept(path, "b", path.stat().st_gid)
        path.chmod(0o644)
        assert not is_kept(path, "a", path.stat().st_gid)
