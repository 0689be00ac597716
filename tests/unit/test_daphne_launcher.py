"""The Daphne launcher as a real process on a unix socket that is passed as systemd passes it."""

from __future__ import annotations

import asyncio
import http.client
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from websockets.asyncio.client import ClientConnection, connect, unix_connect
from websockets.exceptions import ConnectionClosed

pytest.importorskip("daphne")

# A client that speaks WebSocket byte by byte: it sees single frames, and answers none of them by itself.
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
LAUNCHER = Path(__file__).parents[2] / "roles/daphne/files/daphne_launcher.py"

# systemd gives the process its sockets from 3 on and names it in LISTEN_PID; the number is known only in the process itself.
AS_SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""

APPLICATION = """
import asyncio, os
from pathlib import Path

async def application(scope, receive, send):
    if scope["type"] == "http":
        await receive()
        await asyncio.sleep(float(scope["query_string"] or b"0"))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": str(os.getpid()).encode()})
        return
    assert (await receive())["type"] == "websocket.connect"
    await asyncio.sleep(float(scope["query_string"] or b"0"))
    await send({"type": "websocket.accept"})
    received = 0
    while (event := await receive())["type"] == "websocket.receive":
        received += 1
        await send({"type": "websocket.send", "text": event["text"]})
    if scope["path"] == "/slow-end":
        await asyncio.sleep(1.5)
    with Path("ended").open("a") as log:
        log.write(f"{event['code']} {received}\\n")
"""


@dataclass
class Server:
    """A launcher's process, and where it is reached."""

    process: subprocess.Popen[str]
    path: Path
    notifications: socket.socket
    said: list[str] = field(default_factory=list)

    def wait_for(self, state: str) -> None:
        deadline = time.monotonic() + 20
        while not any(line.startswith(state) for line in self.said):
            assert time.monotonic() < deadline, f"{state} was not said"
            self.notifications.settimeout(20)
            self.said += self.notifications.recv(4096).decode().split("\n")

    def stop(self) -> float:
        """Send SIGTERM and return how many seconds the process lived on; it must end with 0."""
        before = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0
        return time.monotonic() - before


class Host:
    """What systemd does: holds the listening socket and starts processes on it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "chat.py").write_text(APPLICATION)
        self.path = directory / "daphne.sock"
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(str(self.path))
        self.path.chmod(0o660)
        self.listening.listen(10)
        self.servers: list[Server] = []

    def start(self, *arguments: str, application: str = "chat:application") -> Server:
        notify_path = self.directory / f"notify{len(self.servers)}"
        notifications = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notifications.bind(str(notify_path))
        number = self.listening.fileno()
        process = subprocess.Popen(
            [sys.executable, "-c", AS_SYSTEMD, str(number), LAUNCHER, "--application", application, *arguments],
            cwd=self.directory,
            env={"PATH": os.environ["PATH"], "NOTIFY_SOCKET": str(notify_path)},
            pass_fds=[number],
            stderr=subprocess.PIPE,
            text=True,
        )
        server = Server(process, self.path, notifications)
        self.servers.append(server)
        server.wait_for("READY=1")
        return server

    def close(self) -> None:
        for server in self.servers:
            if server.process.poll() is None:
                server.process.kill()
            server.process.communicate()
            server.notifications.close()
        self.listening.close()

    def ended(self) -> list[str]:
        """Return a line `code messages` for each WebSocket whose end the application has handled."""
        log = self.directory / "ended"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    made.close()


def dial(host: Host, path: str = "/") -> connect:
    return unix_connect(str(host.path), f"ws://localhost{path}", compression=None)


async def close_code(client: ClientConnection) -> int:
    """Read until the connection ends; return the code that the client saw."""
    try:
        while True:
            await client.recv()
    except ConnectionClosed:
        return client.close_code or 0


def get(host: Host, path: str = "/") -> bytes:
    connection = http.client.HTTPConnection("localhost", timeout=20)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(host.path))
    connection.request("GET", path)
    response = connection.getresponse()
    assert response.status == 200
    return response.read()


def test_serves_http_and_websockets(host: Host) -> None:
    server = host.start()

    async def echo() -> None:
        async with dial(host) as client:
            await client.send("hello")
            assert await client.recv() == "hello"

    asyncio.run(echo())
    assert get(host) == str(server.process.pid).encode()


def test_pings_silent_clients(host: Host) -> None:
    host.start("--ping-interval", "1")

    async def pinged() -> None:
        reader, writer = await asyncio.open_unix_connection(host.path)
        writer.write(HANDSHAKE)
        await reader.readuntil(b"\r\n\r\n")
        frame = await asyncio.wait_for(reader.readexactly(2), 10)
        assert frame[0] == 0x89  # FIN and the ping's opcode
        writer.close()

    asyncio.run(pinged())


def test_leaves_the_sockets_path_and_mode_alone(host: Host) -> None:
    before = host.path.stat()
    server = host.start()
    during = host.path.stat()
    server.stop()
    after = host.path.stat()
    assert stat.S_IMODE(before.st_mode) == 0o660
    assert (before.st_ino, before.st_mode) == (during.st_ino, during.st_mode) == (after.st_ino, after.st_mode)


def test_raises_the_backlog_of_the_socket(host: Host) -> None:
    server = host.start("--backlog", "200")
    server.process.send_signal(signal.SIGSTOP)
    waiting = []
    try:
        for _ in range(150):  # the socket was opened with a backlog of 10
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(2)
            client.connect(str(host.path))
            waiting.append(client)
    finally:
        server.process.send_signal(signal.SIGCONT)
        for client in waiting:
            client.close()
    assert len(waiting) == 150


def test_stops_at_once_when_nothing_is_open(host: Host) -> None:
    server = host.start("--drain-seconds", "20")
    assert server.stop() < 2
    server.wait_for("STOPPING=1")


def test_closes_busy_clients_with_1012_over_the_drain(host: Host) -> None:
    server = host.start("--drain-seconds", "3")
    closed_at: list[float] = []

    async def chatter(client: ClientConnection) -> int:
        sent = 0
        try:
            while True:
                await client.send(str(sent))
                sent += 1
                await client.recv()
                await asyncio.sleep(random.uniform(0, 0.02))
        except ConnectionClosed:
            closed_at.append(time.monotonic())
        return client.close_code or 0

    async def clients() -> list[int]:
        connected = await asyncio.gather(*(dial(host) for _ in range(100)))
        tasks = [asyncio.create_task(chatter(client)) for client in connected]
        await asyncio.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        return await asyncio.gather(*tasks)

    assert asyncio.run(clients()) == [1012] * 100
    assert server.process.wait(20) == 0
    assert closed_at[-1] - closed_at[0] > 2
    # Evenly: each quarter of the time closes about a quarter of them.
    first, last = closed_at[0], closed_at[-1]
    quarters = [0] * 4
    for moment in closed_at:
        quarters[min(int((moment - first) / (last - first) * 4), 3)] += 1
    assert min(quarters) > 10, quarters
    assert len(host.ended()) == 100
    assert all(line.startswith("1012 ") for line in host.ended())


def test_a_message_behind_the_close_frame_reaches_the_application(host: Host) -> None:
    server = host.start("--drain-seconds", "0")

    async def client() -> None:
        reader, writer = await asyncio.open_unix_connection(host.path)
        writer.write(HANDSHAKE)
        await reader.readuntil(b"\r\n\r\n")
        server.process.send_signal(signal.SIGTERM)
        frame = await reader.readexactly(2)
        assert frame[0] == 0x88
        assert int.from_bytes((await reader.readexactly(frame[1]))[:2]) == 1012
        # Masked with zeros: a text, a moment later the answering close frame.
        writer.write(b"\x81\x82\0\0\0\0hi")
        await asyncio.sleep(0.5)
        writer.write(b"\x88\x82\0\0\0\0" + (1012).to_bytes(2))
        assert await reader.read() == b""

    asyncio.run(client())
    assert server.process.wait(10) == 0
    assert host.ended() == ["1012 1"]


def test_a_client_that_never_answers_is_cut(host: Host) -> None:
    server = host.start("--drain-seconds", "0")
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(20)
    client.connect(str(host.path))
    client.sendall(HANDSHAKE)
    client.recv(4096)
    assert 4 < server.stop() < 8
    client.close()


def test_a_second_signal_hurries(host: Host) -> None:
    server = host.start("--drain-seconds", "60")

    async def clients() -> list[int]:
        connected = await asyncio.gather(*(dial(host) for _ in range(20)))
        tasks = [asyncio.create_task(close_code(client)) for client in connected]
        server.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(1)
        server.process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(asyncio.gather(*tasks), 10)

    assert asyncio.run(clients()) == [1012] * 20
    assert server.process.wait(10) == 0


def test_waiting_connections_are_left_to_another_process(host: Host) -> None:
    first = host.start("--drain-seconds", "6")

    async def clients() -> None:
        # The first of the two is closed at once, the second keeps the process for 3 s.
        async with dial(host) as old, dial(host) as other:
            first.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(first.wait_for, "STOPPING=1")
            await asyncio.sleep(0.2)
            pending = asyncio.create_task(dial(host).__aenter__())
            await asyncio.sleep(0.5)
            assert not pending.done()
            await asyncio.to_thread(host.start)
            new = await asyncio.wait_for(pending, 10)
            await new.send("to the second process")
            assert await new.recv() == "to the second process"
            assert first.process.poll() is None
            assert {await close_code(old), await close_code(other)} == {1012}
            await new.close()

    asyncio.run(clients())
    assert first.process.wait(10) == 0


def test_two_processes_share_one_socket(host: Host) -> None:
    servers = [host.start(), host.start()]
    answered = {get(host) for _ in range(60)}
    assert answered == {str(server.process.pid).encode() for server in servers}


def test_requests_and_handshakes_in_progress_finish(host: Host) -> None:
    server = host.start("--drain-seconds", "5")

    async def clients() -> None:
        request = asyncio.create_task(asyncio.to_thread(get, host, "/?1.5"))
        handshake = asyncio.create_task(dial(host, "/?1").__aenter__())
        await asyncio.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        client = await asyncio.wait_for(handshake, 10)
        assert await close_code(client) == 1012
        assert await request == str(server.process.pid).encode()

    asyncio.run(clients())
    assert server.process.wait(10) == 0


def test_an_application_may_take_its_time_to_accept(host: Host) -> None:
    host.start()

    async def client() -> None:
        # Longer than the five seconds that Autobahn gives when nobody tells it.
        async with dial(host, "/?6") as connected:
            await connected.send("in")
            assert await connected.recv() == "in"

    asyncio.run(client())


def test_an_idle_kept_connection_does_not_delay_the_stop(host: Host) -> None:
    server = host.start("--drain-seconds", "20")
    connection = http.client.HTTPConnection("localhost", timeout=20)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(host.path))
    connection.request("GET", "/")
    connection.getresponse().read()
    assert server.stop() < 2
    assert connection.sock.recv(1) == b""


def test_a_request_that_never_ends_is_cut_after_the_drain(host: Host) -> None:
    server = host.start("--drain-seconds", "1", "--application-close-timeout", "1")
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(host.path))
    client.sendall(b"GET /?1000 HTTP/1.1\r\nHost: x\r\n\r\n")
    time.sleep(0.5)
    assert 1 <= server.stop() < 9
    client.close()


def test_disconnect_handlers_run_to_their_end(host: Host) -> None:
    server = host.start("--drain-seconds", "0")

    async def client() -> int:
        connected = await dial(host, "/slow-end")
        server.process.send_signal(signal.SIGTERM)
        return await close_code(connected)

    assert asyncio.run(client()) == 1012
    assert server.process.wait(10) == 0
    assert host.ended() == ["1012 0"]


def run(directory: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(LAUNCHER), *arguments],
        cwd=directory,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("application", "said"),
    [
        ("missing:application", "module 'missing' can't be imported"),
        ("chat:missing", "there is no 'missing' in module 'chat'"),
        ("chat", "there is no '' in module 'chat'"),
        ("chat:Path.__doc__", "can't be called"),
    ],
)
def test_says_what_is_wrong_with_the_application(tmp_path: Path, application: str, said: str) -> None:
    (tmp_path / "chat.py").write_text(APPLICATION)
    result = run(tmp_path, "--application", application, "--check")
    assert result.returncode == 1
    assert said in result.stderr
    assert str(tmp_path) in result.stderr


def test_checks_a_good_application(tmp_path: Path) -> None:
    (tmp_path / "chat.py").write_text(APPLICATION)
    result = run(tmp_path, "--application", "chat:application", "--check")
    assert (result.returncode, result.stderr) == (0, "")


def test_refuses_to_run_without_a_socket(tmp_path: Path) -> None:
    (tmp_path / "chat.py").write_text(APPLICATION)
    result = run(tmp_path, "--application", "chat:application", LISTEN_FDS="1", LISTEN_PID="1")
    assert result.returncode == 1
    assert "systemd has passed no socket" in result.stderr


def test_refuses_an_old_daphne(tmp_path: Path) -> None:
    (tmp_path / "chat.py").write_text(APPLICATION)
    metadata = tmp_path / "packages/daphne-4.2.1.dist-info/METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: daphne\nVersion: 4.2.1\n")
    result = run(tmp_path, "--application", "chat:application", "--check", PYTHONPATH=str(tmp_path / "packages"))
    assert result.returncode == 1
    assert "Daphne 4.2.1 has known holes" in result.stderr
    assert "daphne>=4.2.2" in result.stderr
