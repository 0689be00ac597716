"""The module postgresql_logins: verifiers, and the statements that it makes of what the server has."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import hmac
from typing import Any

import pytest
from ansible_collections.quintet.django.plugins.modules import postgresql_logins
from ansible_collections.quintet.django.plugins.modules.postgresql_logins import (
    ALL_GRANTED,
    RefusedError,
    Role,
    Wanted,
    is_of,
    planned,
    planned_grants,
    verifier,
    wanted_of,
)

NEW, OLD = "a new password of the shop", "the one before it"
GROUP = Role()
MADE = Role(
    can_login=True,
    verifier=verifier(OLD, b"0123456789abcdef"),
    groups=("shop", "by-password"),
    settings={"role": "shop"},
)
SHOP: dict[str, Any] = {
    "database": "shop",
    "owner": "shop",
    "group": "by-password",
    "logins": {},
    "rights": "schema",
    "app": "shop:app",
    "migrator": "",
    "certificate_group": "by-certificate",
    "timeouts": {},
}
LESSER: dict[str, Any] = {"rights": "data", "migrator": "shop:owner", "timeouts": {"lock_timeout": "10000"}}
# With what SHOP and LESSER make together.
APART = {
    "by-password": GROUP,
    "by-certificate": GROUP,
    "shop:app": GROUP,
    "shop:owner": Role(can_login=True, groups=("shop", "by-certificate"), settings={"role": "shop"}),
    "shop_1": dataclasses.replace(MADE, groups=("shop:app", "by-password"), settings={"lock_timeout": "10000"}),
}


def plan(roles: dict[str, Role], /, _options: dict[str, Any] | None = None, **logins: str) -> postgresql_logins.Plan:
    return planned(roles, Wanted(**{**SHOP, **(_options or {}), "logins": logins}))


def without_verifiers(statements: list[str]) -> list[str]:
    return [postgresql_logins.VERIFIER.sub("VERIFIER", statement) for statement in statements]


def test_a_verifier_is_that_of_the_rfc() -> None:
    # RFC 7677, section 3: password "pencil", and this salt. The server there answers with a signature made by its second key.
    salt = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
    told = verifier("pencil", salt)
    assert told.startswith("SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$")
    stored, server = (base64.b64decode(part) for part in told.split("$")[2].split(":"))
    nonces = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    first = "n=user,r=rOprNGfwEbeRWgbNEkqO"
    challenge = f"r={nonces},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    exchange = f"{first},{challenge},c=biws,r={nonces}".encode()
    proof = base64.b64decode("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
    assert hmac.digest(server, exchange, "sha256") == base64.b64decode("6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")
    key = bytes(a ^ b for a, b in zip(proof, hmac.digest(stored, exchange, "sha256"), strict=True))
    assert hashlib.sha256(key).digest() == stored


@pytest.mark.parametrize(
    ("known", "is_it"),
    [
        (verifier(NEW, b"salt" * 4), True),
        (verifier(NEW, b"salt" * 4, iterations=8192), True),
        (verifier(OLD, b"salt" * 4), False),
        ("", False),
        ("md5" + "0" * 32, False),
        ("SCRAM-SHA-256$4096:A$B:C", False),
    ],
)
def test_a_password_is_known_by_its_verifier(known: str, is_it: bool) -> None:
    assert is_of(known, NEW) is is_it


def test_the_first_login_comes_whole_before_it_can_log_in() -> None:
    made = plan({}, shop_1=NEW, shop_2="")
    assert without_verifiers(made.statements) == [
        f'CREATE ROLE "by-password" NOLOGIN {postgresql_logins.ATTRIBUTES}',
        'CREATE ROLE "shop_1" NOLOGIN',
        'GRANT "shop", "by-password" TO "shop_1"',
        f"ALTER ROLE \"shop_1\" LOGIN {postgresql_logins.ATTRIBUTES} PASSWORD 'VERIFIER'",
        'ALTER ROLE "shop_1" IN DATABASE "shop" SET role TO "shop"',
    ]
    assert (made.accepted, made.ended) == (["shop_1"], [])
    assert NEW not in "".join(made.statements)


def test_nothing_is_done_twice() -> None:
    roles = {"by-password": GROUP, "shop_1": MADE, "shop_2": dataclasses.replace(MADE, can_login=False, verifier="")}
    assert plan(roles, shop_1=OLD, shop_2="").statements == []


@pytest.mark.parametrize(
    ("change", "statement"),
    [
        ({"verifier": verifier(NEW, b"salt" * 4)}, "LOGIN"),
        ({"verifier": ""}, "LOGIN"),
        ({"can_login": False}, "LOGIN"),
        ({"is_more_than_a_login": True}, "LOGIN"),
        ({"settings": {}}, "IN DATABASE"),
    ],
)
def test_what_differs_is_mended(change: dict[str, Any], statement: str) -> None:
    roles = {"by-password": GROUP, "shop_1": dataclasses.replace(MADE, **change)}
    (made,) = plan(roles, shop_1=OLD).statements
    assert made.startswith(f'ALTER ROLE "shop_1" {statement} ')


def test_an_ended_login_loses_its_password() -> None:
    made = plan({"by-password": GROUP, "shop_1": MADE}, shop_1="")
    assert made.statements == ['ALTER ROLE "shop_1" NOLOGIN PASSWORD NULL']
    assert made.ended == ["shop_1"]


@pytest.mark.parametrize("groups", [(), ("shop",), ("by-password",), ("chat", "by-password")])
def test_a_role_that_was_made_for_something_else_is_refused(groups: tuple[str, ...]) -> None:
    for password in ("", NEW):
        with pytest.raises(RefusedError, match="a role 'shop_1' already"):
            plan({"by-password": GROUP, "shop_1": dataclasses.replace(MADE, groups=groups)}, shop_1=password)


@pytest.mark.parametrize("password", ["grüße", "a\nb", "\u2163" * 20])
def test_a_password_that_libpq_would_change_is_refused_and_not_told(password: str) -> None:
    with pytest.raises(RefusedError) as told:
        plan({}, shop_1=password)
    assert password not in str(told.value)


class Cursor:
    """Stands for psycopg2's, and knows no role."""

    def __init__(self, done: list[str]) -> None:
        self.done = done

    def __enter__(self) -> Cursor:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def execute(self, statement: str, _parameters: Any = None) -> None:
        self.done.append(statement.split()[0])

    def fetchall(self) -> list[Any]:
        return []


class Driver:
    """Stands for psycopg2."""

    OperationalError = RuntimeError

    def __init__(self) -> None:
        self.done: list[str] = []
        self.connected: dict[str, str] = {}

    def connect(self, **parameters: str) -> Driver:
        self.connected = parameters
        return self

    def cursor(self) -> Cursor:
        return Cursor(self.done)

    def commit(self) -> None:
        self.done.append("commit")

    def close(self) -> None:
        self.done.append("close")


@pytest.mark.parametrize("write", [True, False])
def test_it_is_one_transaction_that_is_not_logged(monkeypatch: pytest.MonkeyPatch, write: bool) -> None:
    driver = Driver()
    monkeypatch.setattr(postgresql_logins, "psycopg2", driver)
    made = postgresql_logins.keep(wanted_of({**SHOP, "logins": {"shop_1": NEW}}), "/run/postgresql", write=write)
    assert len(made.statements) == 5
    assert driver.done == [
        "SELECT",
        *(["CREATE", "CREATE", "GRANT", "ALTER", "ALTER"] if write else []),
        "commit",
        "close",
    ]
    for setting in ("log_statement=none", "log_min_error_statement=panic", "log_transaction_sample_rate=0"):
        assert f"-c {setting}" in driver.connected["options"]
    assert driver.connected["dbname"] == "postgres"


def test_rights_are_granted_in_the_database_itself_and_in_check_mode_need_none(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = wanted_of({**SHOP, **LESSER, "logins": {"shop_1": NEW}})
    driver = Driver()
    monkeypatch.setattr(postgresql_logins, "psycopg2", driver)
    made = postgresql_logins.keep(wanted, "/run/postgresql", write=True)
    assert driver.connected["dbname"] == "shop"
    # What the server has, what it has granted, what is there.
    assert driver.done[:3] == ["SELECT"] * 3
    assert driver.done[3:] == [*(statement.split()[0] for statement in made.statements), "commit", "close"]

    class Missing(Driver):
        def connect(self, **parameters: str) -> Driver:
            if parameters["dbname"] == "shop":
                raise RuntimeError
            return super().connect(**parameters)

    missing = Missing()
    monkeypatch.setattr(postgresql_logins, "psycopg2", missing)
    assert len(postgresql_logins.keep(wanted, "/run/postgresql", write=False).statements) == len(made.statements)
    assert missing.done == ["SELECT", "commit", "close"]
    with pytest.raises(RuntimeError):
        postgresql_logins.keep(wanted, "/run/postgresql", write=True)


def test_logins_of_the_running_app_are_no_members_of_the_owner() -> None:
    made = plan({}, LESSER, shop_1=NEW)
    assert without_verifiers(made.statements) == [
        f'CREATE ROLE "by-password" NOLOGIN {postgresql_logins.ATTRIBUTES}',
        f'CREATE ROLE "shop:app" NOLOGIN {postgresql_logins.ATTRIBUTES}',
        f'CREATE ROLE "by-certificate" NOLOGIN {postgresql_logins.ATTRIBUTES}',
        'CREATE ROLE "shop:owner" NOLOGIN',
        'GRANT "shop", "by-certificate" TO "shop:owner"',
        f'ALTER ROLE "shop:owner" LOGIN {postgresql_logins.ATTRIBUTES} PASSWORD NULL',
        'ALTER ROLE "shop:owner" IN DATABASE "shop" SET role TO "shop"',
        'CREATE ROLE "shop_1" NOLOGIN',
        'GRANT "shop:app", "by-password" TO "shop_1"',
        f"ALTER ROLE \"shop_1\" LOGIN {postgresql_logins.ATTRIBUTES} PASSWORD 'VERIFIER'",
        'ALTER ROLE "shop_1" IN DATABASE "shop" SET lock_timeout TO \'10000\'',
    ]
    assert plan(APART, LESSER, shop_1=OLD).statements == []


def test_a_login_that_was_the_owner_is_no_more_and_the_way_back() -> None:
    login = {**APART, "shop_1": MADE}
    assert plan(login, LESSER, shop_1=OLD).statements == [
        'GRANT "shop:app" TO "shop_1"',
        'REVOKE "shop" FROM "shop_1"',
        'ALTER ROLE "shop_1" IN DATABASE "shop" RESET role',
        'ALTER ROLE "shop_1" IN DATABASE "shop" SET lock_timeout TO \'10000\'',
    ]
    assert plan(APART, shop_1=OLD).statements == [
        'GRANT "shop" TO "shop_1"',
        'REVOKE "shop:app" FROM "shop_1"',
        'ALTER ROLE "shop_1" IN DATABASE "shop" RESET lock_timeout',
        'ALTER ROLE "shop_1" IN DATABASE "shop" SET role TO "shop"',
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"can_login": False},
        {"verifier": verifier(OLD, b"salt" * 4)},
        {"is_more_than_a_login": True},
        {"groups": ("by-certificate",)},
        {"groups": ("shop", "by-certificate", "by-password")},
        {"settings": {}},
    ],
)
def test_who_migrates_has_a_certificate_and_nothing_else(change: dict[str, Any]) -> None:
    roles = {**APART, "shop:owner": dataclasses.replace(APART["shop:owner"], **change)}
    (made,) = plan(roles, LESSER, shop_1=OLD).statements
    assert '"shop:owner"' in made


def test_settings_of_others_stay() -> None:
    login = dataclasses.replace(APART["shop_1"], settings={"lock_timeout": "1", "work_mem": "8MB"})
    (made,) = plan({**APART, "shop_1": login}, LESSER, shop_1=OLD).statements
    assert made.endswith("SET lock_timeout TO '10000'")


def test_rights_are_given_once() -> None:
    wanted = Wanted(**{**SHOP, **LESSER})
    assert planned_grants(ALL_GRANTED, ["GRANT again"], wanted) == []
    for missing in ALL_GRANTED:
        made = planned_grants(ALL_GRANTED - {missing}, ["GRANT now"], wanted)
        assert (made[0], made[-1]) == ('GRANT CONNECT ON DATABASE "shop" TO "shop:app"', "GRANT now")
        assert not [statement for statement in made if "TRUNCATE" in statement or "CREATE" in statement]
        assert all(' FOR ROLE "shop" ' in statement for statement in made[1:-1])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rights": "data", "app": ""}, "rights: data needs app"),
        ({"migrator": "shop:owner", "certificate_group": ""}, "migrator needs certificate_group"),
        ({"timeouts": {"statement_timeout": "1'; DROP"}}, "statement_timeout: 1'; DROP is none"),
        ({"timeouts": {"work_mem": 1}}, "work_mem: 1 is none"),
    ],
)
def test_options_that_can_not_be_are_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(RefusedError, match=told):
        wanted_of({**SHOP, **change})
