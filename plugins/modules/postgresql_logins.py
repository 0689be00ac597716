#!/usr/bin/python
# Copyright (c) 2026 The Quintet authors
# MIT License (see LICENSE)
"""Keep the roles by which an app logs in to its PostgreSQL database with a password."""

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_logins
short_description: Keeps the roles that log in to a database with a password
version_added: 0.3.0
author: The Quintet authors
description:
  - Gives each login its password, lets it act as the owner of the database, and puts it into the group that must show passwords.
  - All in one transaction, so that there is no moment in which a login has no password, or one without being asked for it.
  - >-
    The server gets SCRAM verifiers (RFC 5803) and never a password, and is told to log none of these statements. Whether a login has its
    password already is found out by the salt of the verifier that the server has.
  - Nobody is disconnected. A login without a password can't log in any more, and its sessions go on.
  - Connects over the local socket as C(postgres), which C(pg_ident.conf) lets root do.
options:
  database: {description: The database; it must be there., type: str, required: true}
  owner: {description: The role that owns the database and all that the logins make in it., type: str, required: true}
  group: {description: The role whose members are asked for a password. It is made when it is missing., type: str, required: true}
  logins:
    description: Passwords by the names of the roles, of printable ASCII characters. An empty one ends the login.
    type: dict
    required: true
  socket: {description: The directory of the server's socket., type: path, default: /var/run/postgresql}
attributes:
  check_mode: {support: full, description: Says whether anything would change.}
notes:
  - Use no_log. So what went wrong is in RV(failure), which holds no secret and has to be looked at.
"""

EXAMPLES = r"""
- name: Have the logins
  quintet.django.postgresql_logins:
    database: shop
    owner: shop
    group: quintet-by-password
    logins: {shop_1: "{{ new }}", shop_2: "{{ old }}"}
  no_log: true
"""

RETURN = r"""
accepted: {description: Logins that have another password now., type: list, elements: str, returned: success}
ended: {description: Logins that were ended now., type: list, elements: str, returned: success}
failure: {description: "What went wrong, in words; empty when nothing did.", type: str, returned: success}
"""

import base64
import binascii
import hashlib
import hmac
import os
import re
from dataclasses import dataclass, field
from typing import Any

from ansible.module_utils.basic import AnsibleModule

try:
    import psycopg2  # type: ignore[import-untyped]  # Debian's; nothing else here needs its types
except ImportError:
    psycopg2 = None

# As PostgreSQL makes them itself (src/include/common/scram-common.h).
ITERATIONS = 4096
SALT_BYTES = 16
VERIFIER = re.compile(r"SCRAM-SHA-256\$(\d+):([A-Za-z0-9+/=]+)\$[A-Za-z0-9+/=]+:[A-Za-z0-9+/=]+")
# What libpq normalizes before it computes with it (SASLprep) is left out.
PASSWORD = re.compile(r"[ -~]+")
# No statement of this session is for the server's log, whatever it logs otherwise: a verifier can be tried passwords on.
QUIET = {
    "log_statement": "none",
    "log_min_error_statement": "panic",
    "log_min_duration_statement": "-1",
    "log_min_duration_sample": "-1",
    "log_transaction_sample_rate": "0",
}
ATTRIBUTES = "NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS"
ROLES = """
SELECT rolname, rolcanlogin, rolpassword, rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls,
       ARRAY(SELECT groups.rolname::text FROM pg_auth_members JOIN pg_authid AS groups ON groups.oid = roleid WHERE member = roles.oid),
       EXISTS (SELECT FROM pg_db_role_setting JOIN pg_database ON pg_database.oid = setdatabase
               WHERE setrole = roles.oid AND datname = %(database)s AND 'role=' || %(owner)s = ANY (setconfig))
FROM pg_authid AS roles WHERE rolname = ANY (%(names)s)
"""


class RefusedError(Exception):
    """What is asked for can't be done; in words for the user."""


@dataclass(frozen=True)
class Role:
    """A role as the server has it."""

    can_login: bool = False
    verifier: str = ""
    is_more_than_a_login: bool = False
    groups: tuple[str, ...] = ()
    acts_as_owner: bool = False


@dataclass
class Plan:
    """Statements that bring the roles into the wanted state, and what they do."""

    statements: list[str] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)


def verifier(password: str, salt: bytes, iterations: int = ITERATIONS) -> str:
    """Return what the server keeps of a password (RFC 5803, section 2.2)."""
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    salt64, stored64, server64 = (base64.b64encode(part).decode() for part in (salt, stored, server))
    return f"SCRAM-SHA-256${iterations}:{salt64}${stored64}:{server64}"


def is_of(known: str, password: str) -> bool:
    """Say whether a verifier is one of this password."""
    found = VERIFIER.fullmatch(known)
    if not found:
        return False
    try:
        salt = base64.b64decode(found[2], validate=True)
    except binascii.Error:
        return False
    return hmac.compare_digest(known, verifier(password, salt, int(found[1])))


def quoted(name: str) -> str:
    """Return a name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def planned(roles: dict[str, Role], database: str, owner: str, group: str, logins: dict[str, str]) -> Plan:
    """Return what is to be done to some roles; raises RefusedError for one that was not made here."""
    plan = Plan()
    if group not in roles:
        plan.statements.append(f"CREATE ROLE {quoted(group)} NOLOGIN {ATTRIBUTES}")
    for name, password in sorted(logins.items()):
        role = roles.get(name)
        if role is not None and not {owner, group} <= {*role.groups}:
            raise RefusedError(
                f"There is a role '{name}' already that was not made for database '{database}'. "
                "Give the app another user, or drop that role."
            )
        if not password:
            if role is not None and (role.can_login or role.verifier):
                plan.statements.append(f"ALTER ROLE {quoted(name)} NOLOGIN PASSWORD NULL")
                plan.ended.append(name)
            continue
        if not PASSWORD.fullmatch(password):
            raise RefusedError(f"The password of '{name}' has characters beyond printable ASCII. Take others.")
        if role is None:
            plan.statements += [
                f"CREATE ROLE {quoted(name)} NOLOGIN",
                f"GRANT {quoted(owner)}, {quoted(group)} TO {quoted(name)}",
            ]
        if role is None or not role.can_login or role.is_more_than_a_login or not is_of(role.verifier, password):
            secret = verifier(password, os.urandom(SALT_BYTES))
            plan.statements.append(f"ALTER ROLE {quoted(name)} LOGIN {ATTRIBUTES} PASSWORD '{secret}'")
            plan.accepted.append(name)
        if role is None or not role.acts_as_owner:
            plan.statements.append(
                f"ALTER ROLE {quoted(name)} IN DATABASE {quoted(database)} SET role TO {quoted(owner)}"
            )
    return plan


def known_roles(cursor: Any, database: str, owner: str, names: list[str]) -> dict[str, Role]:
    """Return those of some roles that the server has."""
    cursor.execute(ROLES, {"database": database, "owner": owner, "names": names})
    return {
        name: Role(can_login, known or "", more, tuple(groups), acts)
        for name, can_login, known, more, groups, acts in cursor.fetchall()
    }


def keep(parameters: dict[str, Any], *, write: bool) -> Plan:
    """Bring the logins into the wanted state, or only say what that would be; raises RefusedError and psycopg2.Error."""
    database, owner, group = parameters["database"], parameters["owner"], parameters["group"]
    logins = {str(name): str(password) for name, password in parameters["logins"].items()}
    options = " ".join(f"-c {name}={value}" for name, value in QUIET.items())
    connection = psycopg2.connect(dbname="postgres", user="postgres", host=parameters["socket"], options=options)
    try:
        # One transaction, which ends with the connection unless it is committed.
        with connection.cursor() as cursor:
            roles = known_roles(cursor, database, owner, [group, *logins])
            plan = planned(roles, database, owner, group, logins)
            if write:
                for statement in plan.statements:
                    cursor.execute(statement)
        connection.commit()
    finally:
        connection.close()
    return plan


def run() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "database": {"type": "str", "required": True},
            "owner": {"type": "str", "required": True},
            "group": {"type": "str", "required": True},
            "logins": {"type": "dict", "required": True, "no_log": True},
            "socket": {"type": "path", "default": "/var/run/postgresql"},
        },
        supports_check_mode=True,
    )
    if psycopg2 is None:
        module.exit_json(
            changed=False, accepted=[], ended=[], failure="Install python3-psycopg2, as role postgresql does."
        )
    try:
        plan = keep(module.params, write=not module.check_mode)
    except RefusedError as error:
        module.exit_json(changed=False, accepted=[], ended=[], failure=str(error))
    except psycopg2.Error as error:
        # The first line: behind it may be the statement.
        said = (error.diag.message_primary or str(error)).strip().splitlines() or [type(error).__name__]
        module.exit_json(changed=False, accepted=[], ended=[], failure=f"PostgreSQL answered: {said[0]}")
    module.exit_json(changed=bool(plan.statements), accepted=plan.accepted, ended=plan.ended, failure="")


if __name__ == "__main__":
    run()
