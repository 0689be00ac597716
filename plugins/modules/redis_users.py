#!/usr/bin/python
# Copyright (c) 2026 The Quintet authors
# MIT License (see LICENSE)
"""Keep the users of a Redis instance, and change their passwords while it runs."""

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_users
short_description: Keeps the users of a Redis instance
version_added: 0.3.0
author: The Quintet authors
description:
  - Writes the instance's ACL file, readable by root only, and gives a running instance the passwords in it.
  - Nobody is disconnected by a change of passwords. Redis 7.0 disconnects everybody at ACL LOAD, so that command is not used.
  - >-
    Adds a user who may change users and nothing else. Its password is made once, lies beside the ACL file, and is sent over the socket
    alone.
options:
  path: {description: "The ACL file. Its directory must be there.", type: path, required: true}
  users: {description: "Lines of the ACL file, passwords as their SHA-256.", type: str, required: true}
  socket: {description: The socket of the instance., type: path, required: true}
  loaded: {description: The copy of the ACL file that the instance was started with., type: path, required: true}
attributes:
  check_mode: {support: full, description: Says whether anything would change.}
"""

EXAMPLES = r"""
- name: Accept the password
  quintet.django.redis_users:
    path: /etc/redis-shop/users.acl
    users: "user shop on #{{ password | hash('sha256') }} ~asgi* +@all"
    socket: /run/redis-shop/redis.sock
    loaded: /run/credentials/redis-shop.service/users.acl
"""

RETURN = r"""
restart:
  description: Whether the instance runs with users that differ in more than their passwords, and must be restarted.
  type: bool
  returned: success
accepted: {description: Users whose passwords the running instance was given., type: list, elements: str, returned: success}
"""

import hashlib
import os
import re
import secrets
import socket
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

# No instance can have this name: it has a hyphen.
ADMINISTRATOR = "quintet-administrator"
PASSWORD_BYTES = 32
# Seconds that Redis, which does one thing at a time, may take to answer.
ANSWER_SECONDS = 10

Passwords = dict[str, list[str]]


class RedisError(Exception):
    """Redis answered with an error."""


class Connection:
    """A connection to Redis, speaking RESP2 (https://redis.io/docs/latest/develop/reference/protocol-spec/)."""

    def __init__(self, path: Path) -> None:
        """Connect; raises OSError when nobody listens."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(ANSWER_SECONDS)
        self._socket.connect(str(path))
        self._answers = self._socket.makefile("rb")

    def close(self) -> None:
        """End the connection."""
        self._answers.close()
        self._socket.close()

    def call(self, *words: str) -> Any:
        """Send a command and return its answer; raises RedisError for an error, OSError when there is none."""
        sent = b"".join(b"$%d\r\n%s\r\n" % (len(word.encode()), word.encode()) for word in words)
        self._socket.sendall(b"*%d\r\n%s" % (len(words), sent))
        return self._answer()

    def _answer(self) -> Any:
        line = self._answers.readline()
        if not line.endswith(b"\r\n"):
            raise OSError("the connection was closed")
        kind, text = line[:1], line[1:-2].decode()
        if kind == b"-":
            raise RedisError(text)
        if kind == b"+":
            return text
        if kind == b":":
            return int(text)
        if kind == b"*":
            return None if int(text) < 0 else [self._answer() for _ in range(int(text))]
        if int(text) < 0:
            return None
        return self._answers.read(int(text) + 2)[:-2].decode()


def passwords(text: str) -> Passwords:
    """Return the digests of each user's passwords from the text of an ACL file."""
    users = (line.split() for line in text.splitlines() if line.startswith("user "))
    return {words[1]: sorted(word[1:] for word in words if word.startswith("#")) for words in users}


def without_passwords(text: str) -> str:
    """Return the text of an ACL file without passwords: what a running instance can't be given without a restart."""
    return re.sub(r" #[0-9a-f]{64}", "", text)


def accepted_passwords(connection: Connection, name: str) -> list[str] | None:
    """Return the digests of the passwords that the instance accepts for a user, or None when it has no such user."""
    answer = connection.call("ACL", "GETUSER", name)
    if answer is None:
        return None
    fields = dict(zip(answer[::2], answer[1::2], strict=True))
    return sorted(fields["passwords"])


def give(connection: Connection, wanted: Passwords, *, write: bool) -> list[str]:
    """Have the instance accept exactly these passwords, one command a user; returns the users that had others."""
    changed = []
    for name, digests in sorted(wanted.items()):
        if accepted_passwords(connection, name) not in (None, digests):
            changed.append(name)
            if write:
                connection.call("ACL", "SETUSER", name, "resetpass", *(f"#{digest}" for digest in digests))
    return changed


def write_private(path: Path, text: str) -> None:
    """Write a file that only root can read, at once or not at all."""
    descriptor, name = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(descriptor, "w") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    Path(name).rename(path)


def read(path: Path) -> str:
    """Return a file's text; empty when it is not there."""
    return path.read_text() if path.is_file() else ""


def running(path: Path, password: str, wanted: Passwords, *, write: bool) -> tuple[list[str], bool]:
    """Give the running instance its passwords; returns who had others, and whether it does not know the administrator."""
    try:
        connection = Connection(path)
    except (FileNotFoundError, ConnectionRefusedError):
        # It does not run, and will read the file when it starts. Anything else, such as a full backlog, is not for passing over.
        return [], False
    try:
        connection.call("AUTH", ADMINISTRATOR, password)
        return give(connection, wanted, write=write), False
    except RedisError as error:
        if str(error).startswith(("WRONGPASS", "NOPERM")):
            return [], True
        raise
    finally:
        connection.close()


def keep(parameters: dict[str, Any], *, write: bool) -> dict[str, Any]:
    """Bring the file and the instance into the wanted state, or only say what that would be."""
    path = Path(parameters["path"])
    store = path.parent / "administrator"
    known = read(store)
    password = known or secrets.token_urlsafe(PASSWORD_BYTES)
    administrator = f"user {ADMINISTRATOR} on #{hashlib.sha256(password.encode()).hexdigest()} -@all +auth +acl|getuser +acl|setuser"
    text = parameters["users"].rstrip("\n") + "\n" + administrator + "\n"
    differs = read(path) != text
    if write and not known:
        write_private(store, password)
    if write and differs:
        write_private(path, text)
    loaded = read(Path(parameters["loaded"]))
    restart = loaded != "" and without_passwords(loaded) != without_passwords(text)
    changed: list[str] = []
    if not restart:
        changed, restart = running(Path(parameters["socket"]), password, passwords(text), write=write)
    return {"changed": differs or not known or bool(changed), "restart": restart, "accepted": changed}


def run() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "users": {"type": "str", "required": True},
            "socket": {"type": "path", "required": True},
            "loaded": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    try:
        result = keep(module.params, write=not module.check_mode)
    except (OSError, ValueError, RedisError) as error:
        module.fail_json(
            msg=f"{module.params['path']}: the users of the instance at {module.params['socket']} could not be kept: {error}."
        )
    module.exit_json(**result)


if __name__ == "__main__":
    run()
