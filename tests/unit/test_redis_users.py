"""The module redis_users, against a socket that answers as Redis does."""

from __future__ import annotations

import hashlib
import socket
import socketserver
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.quintet.django.plugins.modules import redis_users

RULES = "~asgi* -@all +ping"
NEW, OLD, SHORT = (hashlib.sha256(word).hexdigest() for word in (b"new", b"old", b"short"))


def users(*digests: str, rules: str = RULES) -> str:
    return f"user default off -@all\nuser shop on {' '.join(f'#{digest}' for digest in digests)} {rules}\n"


class Redis(socketserver.ThreadingUnixStreamServer):
    """Knows AUTH, ACL GETUSER and ACL SETUSER, and keeps what was sent."""

    daemon_threads = True
    passwords: redis_users.Passwords
    sent: list[list[str]]


class Client(socketserver.StreamRequestHandler):
    """One connection."""

    server: Redis

    def handle(self) -> None:
        while line := self.rfile.readline():
            words = []
            for _ in range(int(line[1:])):
                size = int(self.rfile.readline()[1:])
                words.append(self.rfile.read(size + 2)[:-2].decode())
            self.server.sent.append(words)
            self.wfile.write(self.answer(words).encode())

    def answer(self, words: list[str]) -> str:
        known = self.server.passwords
        match words:
            case ["AUTH", name, password]:
                digest = hashlib.sha256(password.encode()).hexdigest()
                return "+OK\r\n" if digest in known.get(name, []) else "-WRONGPASS invalid username-password pair\r\n"
            case ["ACL", "GETUSER", name] if name not in known:
                return "*-1\r\n"
            case ["ACL", "GETUSER", name]:
                listed = "".join(f"$64\r\n{digest}\r\n" for digest in known[name])
                return f"*4\r\n$5\r\nflags\r\n*1\r\n$2\r\non\r\n$9\r\npasswords\r\n*{len(known[name])}\r\n{listed}"
            case ["ACL", "SETUSER", name, "resetpass", *digests]:
                known[name] = [digest.removeprefix("#") for digest in digests]
                return "+OK\r\n"
        return "-ERR unknown command\r\n"


class Instance:
    """An instance's files, and the server when it runs."""

    def __init__(self, directory: Path) -> None:
        self.path, self.loaded = directory / "users.acl", directory / "loaded.acl"
        self.socket = directory / "redis.sock"
        self.server: Redis | None = None

    def keep(self, text: str, *, check: bool = False) -> dict[str, Any]:
        parameters = {"path": str(self.path), "users": text, "socket": str(self.socket), "loaded": str(self.loaded)}
        result: dict[str, Any] = redis_users.keep(parameters, write=not check)
        return result

    def start(self) -> Redis:
        """Start the server with what is written."""
        self.loaded.write_text(self.path.read_text())
        self.server = Redis(str(self.socket), Client)
        self.server.passwords, self.server.sent = redis_users.passwords(self.loaded.read_text()), []
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self.server


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[Instance]:
    made = Instance(tmp_path)
    yield made
    if made.server:
        made.server.shutdown()
        made.server.server_close()


def test_what_is_written_is_roots_and_has_an_administrator_of_few_rights(instance: Instance) -> None:
    result = instance.keep(users(NEW))
    assert result == {"changed": True, "restart": False, "accepted": []}
    for path in (instance.path, instance.path.parent / "administrator"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    last = instance.path.read_text().splitlines()[-1].split()
    password = (instance.path.parent / "administrator").read_text()
    assert last[1:4] == ["quintet-administrator", "on", f"#{hashlib.sha256(password.encode()).hexdigest()}"]
    assert last[4:] == ["-@all", "+auth", "+acl|getuser", "+acl|setuser"]
    assert instance.keep(users(NEW))["changed"] is False


def test_a_running_instance_gets_passwords_without_a_restart(instance: Instance) -> None:
    instance.keep(users(OLD))
    redis = instance.start()
    assert instance.keep(users(NEW, OLD)) == {"changed": True, "restart": False, "accepted": ["shop"]}
    assert redis.passwords["shop"] == sorted([NEW, OLD])
    assert instance.keep(users(NEW, OLD)) == {"changed": False, "restart": False, "accepted": []}
    instance.keep(users(NEW))
    assert redis.passwords["shop"] == [NEW]
    assert not [words for words in redis.sent if "LOAD" in words]


def test_passwords_that_a_killed_run_has_written_only_are_given(instance: Instance) -> None:
    instance.keep(users(OLD))
    redis = instance.start()
    instance.path.write_text(instance.path.read_text().replace(OLD, NEW))
    assert instance.keep(users(NEW))["accepted"] == ["shop"]
    assert redis.passwords["shop"] == [NEW]


def test_other_rules_are_a_restart(instance: Instance) -> None:
    instance.keep(users(OLD))
    redis = instance.start()
    assert instance.keep(users(NEW, rules="~other* -@all"))["restart"] is True
    assert redis.sent == []


def test_an_instance_of_before_the_administrator_is_a_restart(instance: Instance) -> None:
    instance.path.write_text(users(OLD))
    instance.start()
    assert instance.keep(users(OLD))["restart"] is True


def test_a_lost_administrator_is_a_restart(instance: Instance) -> None:
    instance.keep(users(OLD))
    instance.start()
    (instance.path.parent / "administrator").unlink()
    assert instance.keep(users(NEW)) == {"changed": True, "restart": True, "accepted": []}


def test_an_instance_that_runs_and_cannot_be_asked_is_an_error(instance: Instance) -> None:
    instance.keep(users(OLD))
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(instance.socket))
        assert instance.keep(users(NEW))["accepted"] == [], "nobody listens: it does not run"
        busy.listen(0)
        waiting.connect(str(instance.socket))
        with pytest.raises(BlockingIOError):
            instance.keep(users(NEW, OLD))


def test_check_mode_changes_nothing(instance: Instance) -> None:
    assert instance.keep(users(OLD), check=True)["changed"] is True
    assert list(instance.path.parent.iterdir()) == []
    instance.keep(users(OLD))
    redis = instance.start()
    text = instance.path.read_text()
    assert instance.keep(users(NEW), check=True) == {"changed": True, "restart": False, "accepted": ["shop"]}
    assert (instance.path.read_text(), redis.passwords["shop"]) == (text, [OLD])


def test_an_answer_that_redis_does_not_give_ends_it(instance: Instance) -> None:
    instance.keep(users(OLD))
    redis = instance.start()
    redis.passwords.pop("quintet-administrator")
    assert instance.keep(users(OLD))["restart"] is True
    connection = redis_users.Connection(instance.socket)
    with pytest.raises(redis_users.RedisError, match="unknown command"):
        connection.call("FLUSHALL")
    connection.close()
