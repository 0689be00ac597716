#!/usr/bin/python
# Copyright (c) 2026 The Quintet authors
# MIT License (see LICENSE)
"""Keep PgBouncer's list of users as PostgreSQL has it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pgbouncer_users
short_description: Keeps PgBouncer's list of users as PostgreSQL has it
version_added: 0.4.0
author: The Quintet authors
description:
  - >-
    Writes the SCRAM verifiers of a group's members who can log in. With them PgBouncer asks clients for their passwords, and shows
    PostgreSQL what it learns of a client, so it needs no role and no password of its own.
  - Connects over the local socket as C(postgres), which C(pg_ident.conf) lets root do.
options:
  path: {description: The file., type: path, required: true}
  group: {description: The role whose members are listed., type: str, required: true}
  reader: {description: "The group of the operating system that may read the file.", type: str, required: true}
  unit: {description: The unit that PgBouncer runs as., type: str, default: quintet-pgbouncer.service}
  socket: {description: The directory of the server's socket., type: path, default: /var/run/postgresql}
attributes:
  check_mode: {support: full, description: Says whether the list would change.}
notes:
  - Use no_log. So what went wrong is in RV(failure), which holds no secret and has to be looked at.
"""

EXAMPLES = r"""
- name: Have the list
  quintet.django.pgbouncer_users:
    path: /etc/quintet-pgbouncer/userlist.txt
    group: quintet-by-password
    reader: quintet-pgbouncer
  no_log: true
"""

RETURN = r"""
runs: {description: Whether PgBouncer runs., type: bool, returned: success}
failure: {description: "What went wrong, in words; empty when nothing did.", type: str, returned: success}
"""

import grp
import os
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

try:
    import psycopg2  # type: ignore[import-untyped]  # Debian's; nothing else here needs its types
except ImportError:
    psycopg2 = None

MEMBERS = """
SELECT rolname, rolpassword FROM pg_authid
WHERE rolcanlogin AND rolpassword LIKE 'SCRAM-SHA-256$%%' AND (rolvaliduntil IS NULL OR rolvaliduntil > now()) AND oid IN (
    SELECT member FROM pg_auth_members WHERE roleid = to_regrole(quote_ident(%(group)s))
)
ORDER BY rolname
"""


def listed(members: list[tuple[str, str]]) -> str:
    """Return the file's text; in it a quote is written twice."""
    return "".join('"{}" "{}"\n'.format(*(word.replace('"', '""') for word in member)) for member in members)


def members_of(group: str, socket: str) -> list[tuple[str, str]]:
    """Return names and verifiers; raises psycopg2.Error."""
    connection = psycopg2.connect(dbname="postgres", user="postgres", host=socket)
    try:
        with connection.cursor() as cursor:
            cursor.execute(MEMBERS, {"group": group})
            found: list[tuple[str, str]] = cursor.fetchall()
            return found
    finally:
        connection.close()


def write(path: Path, text: str, group: int) -> None:
    """Replace the file at once or not at all, readable by root and the group."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with os.fdopen(descriptor, "w") as handle:
        os.fchown(handle.fileno(), 0, group)
        os.fchmod(handle.fileno(), 0o640)
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    Path(name).rename(path)


def is_kept(path: Path, text: str, group: int) -> bool:
    """Say whether the file is as it must be."""
    if not path.is_file():
        return False
    found = path.stat()
    return (found.st_mode & 0o777, found.st_uid, found.st_gid) == (0o640, 0, group) and path.read_text() == text


def run() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "group": {"type": "str", "required": True},
            "reader": {"type": "str", "required": True},
            "unit": {"type": "str", "default": "quintet-pgbouncer.service"},
            "socket": {"type": "path", "default": "/var/run/postgresql"},
        },
        supports_check_mode=True,
    )
    result: dict[str, Any] = {"changed": False, "runs": False, "failure": ""}
    if psycopg2 is None:
        module.exit_json(**{**result, "failure": "Install python3-psycopg2, as role postgresql does."})
    parameters = module.params
    try:
        text = listed(members_of(parameters["group"], parameters["socket"]))
        reader = grp.getgrnam(parameters["reader"]).gr_gid
        path = Path(parameters["path"])
        result["changed"] = not is_kept(path, text, reader)
        if result["changed"] and not module.check_mode:
            write(path, text, reader)
    except psycopg2.Error as error:
        result["failure"] = f"PostgreSQL answered: {(error.diag.message_primary or str(error)).strip()}"
    except (KeyError, OSError) as error:
        result["failure"] = f"{type(error).__name__}: {error}."
    code, _, _ = module.run_command(["systemctl", "is-active", "--quiet", parameters["unit"]])
    result["runs"] = code == 0
    module.exit_json(**result)


if __name__ == "__main__":
    run()
