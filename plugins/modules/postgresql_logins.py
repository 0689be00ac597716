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
  - Gives each login its password and puts it into the group that must show passwords.
  - >-
    With O(rights) V(schema) it acts as the owner of the database. With V(data) it has the rights of O(app), which is to read and to
    write what the owner has made and will make, and nothing that changes the schema; it can't become the owner. Grants are made once,
    so what the owner takes away from that role later stays away.
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
  rights:
    description: Whether the logins act as the owner, or may read and write, and no more.
    type: str
    choices: [schema, data]
    default: schema
  app:
    description: The role of those who may read and write, and no more. With O(rights) V(data) it is needed, and made when it is missing.
    type: str
    default: ""
  migrator:
    description: >-
      A role that logs in with a certificate of its name and acts as the owner. It has no password. Empty where there is none.
    type: str
    default: ""
  certificate_group:
    description: The role whose members are asked for a certificate. It is made when it is missing. Needed with O(migrator).
    type: str
    default: ""
  timeouts:
    description: >-
      Of C(statement_timeout), C(lock_timeout) and C(idle_in_transaction_session_timeout), what the logins have in this database, in
      milliseconds. One that is left out is as the server has it.
    type: dict
    default: {}
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

- name: Have logins that can't change the schema, and a role that can by its certificate
  quintet.django.postgresql_logins:
    database: shop
    owner: shop
    group: quintet-by-password
    logins: {shop_1: "{{ new }}", shop_2: "{{ old }}"}
    rights: data
    app: shop:app
    migrator: shop:owner
    certificate_group: quintet-by-certificate
    timeouts: {statement_timeout: 60000}
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
       ARRAY(SELECT unnest(setconfig) FROM pg_db_role_setting JOIN pg_database ON pg_database.oid = setdatabase
             WHERE setrole = roles.oid AND datname = %(database)s)
FROM pg_authid AS roles WHERE rolname = ANY (%(names)s)
"""
# What a role has been granted for the running app: on the database, and by default on schemas, tables, sequences and routines to come.
GRANTED = """
SELECT DISTINCT kind FROM (
    SELECT 'database' AS kind, datacl AS entries FROM pg_database WHERE datname = current_database()
    UNION ALL
    SELECT defaclobjtype::text, defaclacl FROM pg_default_acl WHERE defaclnamespace = 0 AND defaclrole = to_regrole(%(owner)s)
) AS found, aclexplode(entries) AS entry WHERE entry.grantee = to_regrole(%(app)s)
"""
ALL_GRANTED = {"database", "n", "r", "S", "f"}
# Statements that grant what is there already: the owner's, and the schema that comes with each database.
EXISTING = """
SELECT format('GRANT USAGE ON SCHEMA %%I TO %%s', nspname, %(app)s) FROM pg_namespace
WHERE nspname = 'public' OR nspowner = to_regrole(%(owner)s)
UNION ALL
SELECT CASE relkind WHEN 'S' THEN format('GRANT USAGE, SELECT, UPDATE ON SEQUENCE %%s TO %%s', pg_class.oid::regclass, %(app)s)
    ELSE format('GRANT SELECT, INSERT, UPDATE, DELETE ON TABLE %%s TO %%s', pg_class.oid::regclass, %(app)s) END
FROM pg_class WHERE relowner = to_regrole(%(owner)s) AND relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
UNION ALL
SELECT format('GRANT EXECUTE ON ROUTINE %%s TO %%s', pg_proc.oid::regprocedure, %(app)s)
FROM pg_proc WHERE proowner = to_regrole(%(owner)s)
"""
PLAIN_OPTIONS = ("database", "owner", "group", "rights", "app", "migrator", "certificate_group")
TIMEOUTS = ("idle_in_transaction_session_timeout", "lock_timeout", "statement_timeout")


class RefusedError(Exception):
    """What is asked for can't be done; in words for the user."""


@dataclass(frozen=True)
class Role:
    """A role as the server has it; settings are those in the database."""

    can_login: bool = False
    verifier: str = ""
    is_more_than_a_login: bool = False
    groups: tuple[str, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Wanted:
    """Who may do what in a database, as the module's options say it."""

    database: str
    owner: str
    group: str
    logins: dict[str, str]
    rights: str = "schema"
    app: str = ""
    migrator: str = ""
    certificate_group: str = ""
    timeouts: dict[str, str] = field(default_factory=dict)

    @property
    def owns(self) -> bool:
        """Whether the logins act as the owner."""
        return self.rights == "schema"

    @property
    def groups(self) -> list[str]:
        """The roles that others are members of."""
        groups = (self.group, "" if self.owns else self.app, self.certificate_group if self.migrator else "")
        return [name for name in groups if name]

    @property
    def names(self) -> list[str]:
        """All roles that are looked at."""
        return [*self.groups, *([self.migrator] if self.migrator else []), *self.logins]


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


def settled(role: Role | None, name: str, wanted: Wanted, settings: dict[str, str]) -> list[str]:
    """Return the statements that give a role these settings in the database, and end those that it has no more."""
    there = {} if role is None else role.settings
    place = f"ALTER ROLE {quoted(name)} IN DATABASE {quoted(wanted.database)}"
    ours = sorted({"role", *TIMEOUTS} & there.keys() - settings.keys())
    # What the server shows is as it was given.
    differ = sorted(key for key, value in settings.items() if there.get(key) != value)
    values = {key: quoted(settings[key]) if key == "role" else f"'{settings[key]}'" for key in differ}
    return [f"{place} RESET {key}" for key in ours] + [f"{place} SET {key} TO {values[key]}" for key in differ]


def membership(role: Role, name: str, groups: tuple[str, ...], others: tuple[str, ...]) -> list[str]:
    """Return the statements that make a role a member of some groups and of none of the others."""
    missing = [quoted(group) for group in groups if group not in role.groups]
    left = [quoted(group) for group in others if group in role.groups]
    grant = [f"GRANT {', '.join(missing)} TO {quoted(name)}"] if missing else []
    return grant + ([f"REVOKE {', '.join(left)} FROM {quoted(name)}"] if left else [])


def planned(roles: dict[str, Role], wanted: Wanted) -> Plan:
    """Return what is to be done to some roles; raises RefusedError for one that was not made here."""
    plan = Plan()
    plan.statements += [
        f"CREATE ROLE {quoted(group)} NOLOGIN {ATTRIBUTES}" for group in wanted.groups if group not in roles
    ]
    if wanted.migrator:
        plan.statements += planned_migrator(roles.get(wanted.migrator), wanted)
    rights, others = (wanted.owner, wanted.app) if wanted.owns else (wanted.app, wanted.owner)
    settings = {**({"role": wanted.owner} if wanted.owns else {}), **wanted.timeouts}
    for name, password in sorted(wanted.logins.items()):
        role = roles.get(name)
        if role is not None and not (wanted.group in role.groups and {rights, others} & {*role.groups}):
            raise RefusedError(
                f"There is a role '{name}' already that was not made for database '{wanted.database}'. "
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
            plan.statements.append(f"CREATE ROLE {quoted(name)} NOLOGIN")
        plan.statements += membership(role or Role(), name, (rights, wanted.group), (others,))
        if role is None or not role.can_login or role.is_more_than_a_login or not is_of(role.verifier, password):
            secret = verifier(password, os.urandom(SALT_BYTES))
            plan.statements.append(f"ALTER ROLE {quoted(name)} LOGIN {ATTRIBUTES} PASSWORD '{secret}'")
            plan.accepted.append(name)
        plan.statements += settled(role, name, wanted, settings)
    return plan


def planned_migrator(role: Role | None, wanted: Wanted) -> list[str]:
    """Return what is to be done to the role that logs in by its certificate."""
    name = wanted.migrator
    statements = [] if role else [f"CREATE ROLE {quoted(name)} NOLOGIN"]
    statements += membership(role or Role(), name, (wanted.owner, wanted.certificate_group), (wanted.group,))
    if role is None or not role.can_login or role.is_more_than_a_login or role.verifier:
        statements.append(f"ALTER ROLE {quoted(name)} LOGIN {ATTRIBUTES} PASSWORD NULL")
    return statements + settled(role, name, wanted, {"role": wanted.owner})


def planned_grants(granted: set[str], existing: list[str], wanted: Wanted) -> list[str]:
    """Return the statements that let the app's role read and write, or none where they were made once."""
    if granted >= ALL_GRANTED:
        return []
    to = f"TO {quoted(wanted.app)}"
    later = f"ALTER DEFAULT PRIVILEGES FOR ROLE {quoted(wanted.owner)} GRANT"
    return [
        f"GRANT CONNECT ON DATABASE {quoted(wanted.database)} {to}",
        f"{later} USAGE ON SCHEMAS {to}",
        f"{later} SELECT, INSERT, UPDATE, DELETE ON TABLES {to}",
        f"{later} USAGE, SELECT, UPDATE ON SEQUENCES {to}",
        f"{later} EXECUTE ON ROUTINES {to}",
        *existing,
    ]


def known_roles(cursor: Any, wanted: Wanted) -> dict[str, Role]:
    """Return those of the roles that the server has."""
    cursor.execute(ROLES, {"database": wanted.database, "names": wanted.names})
    return {
        name: Role(can_login, known or "", more, tuple(groups), dict(entry.split("=", 1) for entry in settings))
        for name, can_login, known, more, groups, settings in cursor.fetchall()
    }


def connected(wanted: Wanted, socket: str, *, write: bool) -> tuple[Any, bool]:
    """Return a connection, and whether it is to the database itself, to which its grants belong; raises psycopg2.Error."""
    options = " ".join(f"-c {name}={value}" for name, value in QUIET.items())
    place = {"user": "postgres", "host": socket, "options": options}
    if not wanted.owns:
        try:
            return psycopg2.connect(dbname=wanted.database, **place), True
        except psycopg2.OperationalError:
            # In check mode a run would have made it before.
            if write:
                raise
    return psycopg2.connect(dbname="postgres", **place), False


def keep(wanted: Wanted, socket: str, *, write: bool) -> Plan:
    """Bring the logins into the wanted state, or only say what that would be; raises RefusedError and psycopg2.Error."""
    connection, is_there = connected(wanted, socket, write=write)
    try:
        # One transaction, which ends with the connection unless it is committed.
        with connection.cursor() as cursor:
            plan = planned(known_roles(cursor, wanted), wanted)
            if not wanted.owns:
                plan.statements += grants(cursor, wanted) if is_there else planned_grants(set(), [], wanted)
            if write:
                for statement in plan.statements:
                    cursor.execute(statement)
        connection.commit()
    finally:
        connection.close()
    return plan


def grants(cursor: Any, wanted: Wanted) -> list[str]:
    """Return what is to be granted in the database, as it is now."""
    names = {"owner": quoted(wanted.owner), "app": quoted(wanted.app)}
    cursor.execute(GRANTED, names)
    granted = {kind for (kind,) in cursor.fetchall()}
    cursor.execute(EXISTING, names)
    return planned_grants(granted, [statement for (statement,) in cursor.fetchall()], wanted)


def wanted_of(parameters: dict[str, Any]) -> Wanted:
    """Return the module's options; raises RefusedError for those that can't be."""
    for name, needs, is_so in (
        ("app", "rights: data", parameters["rights"] == "data"),
        ("certificate_group", "migrator", bool(parameters["migrator"])),
    ):
        if is_so and not parameters[name]:
            raise RefusedError(f"{needs} needs {name}. Give it the name of a role.")
    timeouts = {str(name): str(value) for name, value in parameters["timeouts"].items()}
    for name, value in timeouts.items():
        if name not in TIMEOUTS or not value.isdecimal():
            raise RefusedError(f"timeouts: {name}: {value} is none. Give milliseconds for {', '.join(TIMEOUTS)}.")
    return Wanted(
        logins={str(name): str(password) for name, password in parameters["logins"].items()},
        timeouts=timeouts,
        **{name: parameters[name] for name in PLAIN_OPTIONS},
    )


def run() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "database": {"type": "str", "required": True},
            "owner": {"type": "str", "required": True},
            "group": {"type": "str", "required": True},
            "logins": {"type": "dict", "required": True, "no_log": True},
            "rights": {"type": "str", "choices": ["schema", "data"], "default": "schema"},
            "app": {"type": "str", "default": ""},
            "migrator": {"type": "str", "default": ""},
            "certificate_group": {"type": "str", "default": ""},
            "timeouts": {"type": "dict", "default": {}},
            "socket": {"type": "path", "default": "/var/run/postgresql"},
        },
        supports_check_mode=True,
    )
    if psycopg2 is None:
        module.exit_json(
            changed=False, accepted=[], ended=[], failure="Install python3-psycopg2, as role postgresql does."
        )
    try:
        plan = keep(wanted_of(module.params), module.params["socket"], write=not module.check_mode)
    except RefusedError as error:
        module.exit_json(changed=False, accepted=[], ended=[], failure=str(error))
    except psycopg2.Error as error:
        # The first line: behind it may be the statement.
        said = (error.diag.message_primary or str(error)).strip().splitlines() or [type(error).__name__]
        module.exit_json(changed=False, accepted=[], ended=[], failure=f"PostgreSQL answered: {said[0]}")
    module.exit_json(changed=bool(plan.statements), accepted=plan.accepted, ended=plan.ended, failure="")


if __name__ == "__main__":
    run()
