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
    RefusedError,
    Role,
    is_of,
    planned,
    verifier,
)

NEW, OLD = "a new password of the shop", "the one before it"
GROUP = Role()
MADE = Role(
    can_login=True, verifier=verifier(OLD, b"0123456789abcdef"), groups=("shop", "by-password"), acts_as_owner=True
)


def plan(roles: dict[str, Role], **logins: str) -> postgresql_logins.Plan:
    return planned(roles, "shop", "shop", "by-password", logins)


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
        ({"acts_as_owner": False}, "IN DATABASE"),
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
    parameters = {"database": "shop", "owner": "shop", "group": "by-password", "socket": "/run/postgresql"}
    made = postgresql_logins.keep({**parameters, "logins": {"shop_1": NEW}}, write=write)
    assert len(made.statements) == 5
    assert driver.done == [
        "SELECT",
        *(["CREATE", "CREATE", "GRANT", "ALTER", "ALTER"] if write else []),
        "commit",
        "close",
    ]
    for setting in ("log_statement=none", "log_min_error_statement=panic", "log_transaction_sample_rate=0"):
        assert f"-c {setting}" in driver.connected["options"]
