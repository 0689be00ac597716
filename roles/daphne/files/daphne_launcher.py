#!/usr/bin/env python3
# Copyright (c) 2026 The Quintet authors
# MIT License (see LICENSE)
"""Serve an ASGI application with Daphne on a socket of systemd's, and let go of its connections gently.

What it adds to Daphne's own command:

- It adopts the listening socket with a backlog of its own and touches neither the socket's path nor its mode;
  any number of these processes may share one socket.
- It tells systemd when it accepts, and when it stops.
- On SIGTERM it drains: no connection is accepted any more (they wait in the kernel for another process), HTTP requests
  finish, and the WebSockets are closed with code 1012 (service restart), evenly spread over --drain-seconds.
  A second SIGTERM closes all at once.

It runs in the application's environment, with the application's directory as working directory.
Exit codes: 0 after a drain or a good --check, 1 when the application, Daphne or the socket can't be used, 2 for wrong arguments.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import importlib
import importlib.metadata
import logging
import os
import random
import re
import signal
import socket
import sys
import traceback
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

logger = logging.getLogger("quintet.daphne")

# 4.2.2 mends CVE-2026-44545 and CVE-2026-44546.
OLDEST_DAPHNE = (4, 2, 2)

FIRST_FD = 3  # SD_LISTEN_FDS_START of sd_listen_fds(3)
SERVICE_RESTART = 1012  # IANA's registry of WebSocket close codes

# How long a client has to answer a close frame before its connection is cut, in seconds.
CLOSE_HANDSHAKE_SECONDS = 5
# Room for Daphne's look every two seconds at handshakes that take too long.
REFUSAL_SECONDS = 5
# How long an accepted connection may stay without its request, in seconds.
REQUEST_SECONDS = 5
# Between two looks at what is still open, in seconds.
TICK_SECONDS = 0.1
# Connections accepted in one go; few, so that the processes on one socket share a storm.
ACCEPTS_AT_ONCE = 4
# Pause after the process has run out of files, in seconds.
EXHAUSTED_SECONDS = 1


def fail(wrong: str, remedy: str) -> NoReturn:
    """Say what is wrong and what to do, and end with code 1."""
    sys.stderr.write(f"daphne_launcher: {wrong}\n{remedy}\n")
    sys.exit(1)


def notify(state: str, address: str | None) -> None:
    """Send one sd_notify(3) message to the socket `address`; without one, or when nobody listens there, nothing happens."""
    if not address:
        return
    target = "\0" + address[1:] if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.connect(target)
            sender.sendall(state.encode())
    except OSError as error:
        logger.warning("systemd could not be told %r: %s", state, error)


def adopted_sockets(backlog: int) -> list[socket.socket]:
    """Return the listening sockets that systemd passed, listening with `backlog` connections from now on.

    Ends the process when there is none, or when one is not a listening stream socket.
    """
    count = int(os.environ.get("LISTEN_FDS", "0")) if os.environ.get("LISTEN_PID") == str(os.getpid()) else 0
    # Children of the application must not take them for theirs.
    for name in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    if count < 1:
        fail(
            "systemd has passed no socket (LISTEN_FDS, LISTEN_PID).",
            "Start it by its unit, which names the socket unit in Sockets=.",
        )
    sockets = []
    for number in range(FIRST_FD, FIRST_FD + count):
        try:
            adopted = socket.socket(fileno=number)
            listens = adopted.type == socket.SOCK_STREAM and adopted.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError as error:
            fail(f"file descriptor {number} is no socket: {error}.", "Check ListenStream= of the socket unit.")
        if not listens:
            fail(f"file descriptor {number} is not a listening stream socket.", "Use ListenStream= in the socket unit.")
        adopted.set_inheritable(False)
        adopted.setblocking(False)
        adopted.listen(backlog)
        sockets.append(adopted)
    return sockets


def check_daphne() -> None:
    """End the process unless a safe version of Daphne is installed."""
    oldest = ".".join(map(str, OLDEST_DAPHNE))
    remedy = f"Install daphne>={oldest} into the environment of {sys.executable}."
    try:
        version = importlib.metadata.version("daphne")
    except importlib.metadata.PackageNotFoundError:
        fail("Daphne is not installed.", remedy)
    if tuple(int(number) for number in re.findall(r"\d+", version)[:3]) < OLDEST_DAPHNE:
        fail(f"Daphne {version} has known holes.", remedy)


def load_application(name: str) -> Any:
    """Return the ASGI callable `module:attribute`; ends the process when it can't be imported."""
    module_name, _, attribute = name.partition(":")
    remedy = f"Check the application's name, its packages and its settings; the directory is {Path.cwd()}."
    try:
        found: Any = importlib.import_module(module_name)
    except Exception:
        traceback.print_exc()
        fail(f"application '{name}': module '{module_name}' can't be imported (see above).", remedy)
    for part in attribute.split("."):
        if not hasattr(found, part):
            fail(f"application '{name}': there is no '{attribute}' in module '{module_name}'.", remedy)
        found = getattr(found, part)
    if not callable(found):
        fail(f"application '{name}': it is {found!r}, which can't be called.", remedy)
    return found


class Connections:
    """Accepts connections from listening sockets and hands them to Daphne's factory."""

    def __init__(
        self, sockets: list[socket.socket], loop: asyncio.AbstractEventLoop, adopt: Callable[[socket.socket], Any]
    ) -> None:
        self.sockets = sockets
        self.loop = loop
        self.adopt = adopt
        # Twisted's transports, each with the time of its acceptance on the loop's clock.
        self.accepted: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()

    def start(self) -> None:
        """Accept from now on."""
        for listening in self.sockets:
            self.loop.add_reader(listening, self._accept, listening)

    def stop(self) -> None:
        """Accept no more; what waits in the kernel stays there for the other holders of the socket."""
        for listening in self.sockets:
            self.loop.remove_reader(listening)
            listening.close()
        self.sockets = []

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(ACCEPTS_AT_ONCE):
            try:
                connection, _ = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    raise
                logger.error("Cannot accept for now: %s. Raise LimitNOFILE= of the unit, or add processes.", error)
                self.loop.remove_reader(listening)
                self.loop.call_later(EXHAUSTED_SECONDS, self._resume, listening)
                return
            with connection:
                connection.setblocking(False)
                try:
                    transport = self.adopt(connection)
                except OSError as error:  # the peer has gone already
                    logger.debug("Connection lost while it was accepted: %s", error)
                    continue
            if transport is not None:
                self.accepted[transport] = self.loop.time()

    def _resume(self, listening: socket.socket) -> None:
        if listening in self.sockets:
            self.loop.add_reader(listening, self._accept, listening)


class Drain:
    """Brings the connections of a Daphne server to their end.

    `server` is Daphne's, `seconds` the time over which the WebSockets are closed, `application_seconds` what the
    application's disconnect handlers may take, `finished` is called once, when nothing is left or time is up.
    """

    def __init__(
        self,
        server: Any,
        connections: Connections,
        seconds: float,
        application_seconds: float,
        finished: Callable[[], None],
    ) -> None:
        self.server = server
        self.connections = connections
        self.loop = connections.loop
        self.finished = finished
        self.application_seconds = application_seconds
        self.deadline = self.loop.time() + seconds
        websockets = self._open_websockets()
        # At random, so that no kind of client (the oldest, say) always goes first.
        random.shuffle(websockets)
        self.known = weakref.WeakSet(websockets)
        interval = seconds / len(websockets) if websockets else 0
        now = self.loop.time()
        self.schedule = deque((now + number * interval, websocket) for number, websocket in enumerate(websockets))
        logger.info("Draining: %d WebSockets are closed over %g s", len(websockets), seconds)

    def start(self) -> None:
        """Look at once, and from then on every TICK_SECONDS until all is done."""
        now = self.loop.time()
        self._add_late_ones(now)
        while self.schedule and (self.schedule[0][0] <= now or self.deadline <= now):
            self._close(self.schedule.popleft()[1])
        self._let_http_go(now)
        give_up = self.deadline + CLOSE_HANDSHAKE_SECONDS + self.application_seconds + 1
        left = self._left()
        if left and now < give_up:
            self.loop.call_later(TICK_SECONDS, self.start)
            return
        if left:
            logger.warning("Drained, but for %d connections that did not end in time", left)
        else:
            logger.info("Drained")
        self.finished()

    def hurry(self) -> None:
        """Close everything at the next look."""
        logger.info("Draining: hurried")
        self.deadline = min(self.deadline, self.loop.time())

    def _open_websockets(self) -> list[Any]:
        return [
            protocol
            for protocol in self.server.connections
            if hasattr(protocol, "sendCloseFrame") and protocol.state == protocol.STATE_OPEN
        ]

    def _add_late_ones(self, now: float) -> None:
        """Give each WebSocket whose handshake ended during the drain a time of its own in what remains."""
        late = [websocket for websocket in self._open_websockets() if websocket not in self.known]
        if late:
            self.known.update(late)
            remaining = max(self.deadline - now, 0)
            times = [(now + random.uniform(0, remaining), websocket) for websocket in late]  # noqa: S311  (no secret)
            self.schedule = deque(sorted([*self.schedule, *times], key=lambda entry: entry[0]))

    def _close(self, websocket: Any) -> None:
        if websocket.state == websocket.STATE_OPEN:
            # sendClose refuses 1012. Daphne goes on reading until the client's own close frame has come.
            websocket.sendCloseFrame(code=SERVICE_RESTART, reasonUtf8=b"service restart", isReply=False)

    def _let_http_go(self, now: float) -> None:
        """Close idle HTTP connections and have busy ones closed behind their request; at the deadline all of them."""
        for transport, accepted in list(self.connections.accepted.items()):
            protocol = getattr(transport, "protocol", None)
            if protocol is None or not transport.connected:
                continue
            if hasattr(protocol, "sendCloseFrame"):
                if protocol.state == protocol.STATE_CONNECTING and now >= self.deadline:
                    transport.loseConnection()
                continue
            channel = getattr(protocol, "_channel", protocol)  # Twisted wraps the channel until it knows the protocol
            if now >= self.deadline:
                transport.loseConnection()
            elif channel.requests:
                channel.persistent = False
            elif channel in self.server.channels_with_requests or now - accepted > REQUEST_SECONDS:
                transport.loseConnection()

    def _left(self) -> int:
        """Count what is not yet at its end: connections, and applications that still handle their disconnection."""
        open_transports = sum(1 for transport in self.connections.accepted if transport.connected)
        applications = sum(
            1
            for details in self.server.connections.values()
            if (instance := details.get("application_instance")) is not None and not instance.done()
        )
        return max(open_transports, applications)


def make_server(arguments: argparse.Namespace, application: Any, ready: Callable[[], None]) -> Any:
    """Return Daphne's server for the application, which calls `ready` just before its reactor runs."""
    from asgiref.compatibility import guarantee_single_callable
    from daphne.access import AccessLogGenerator
    from daphne.server import Server

    class DrainableServer(Server):
        """Daphne's server, with what the drain needs to know."""

        def __init__(self, **options: Any) -> None:
            super().__init__(endpoints=["adopted"], **options)
            # Daphne insists on an endpoint, but the sockets are accepted from here.
            self.endpoints: list[str] = []
            self.connections: dict[Any, dict[str, Any]] = {}
            self.channels_with_requests: weakref.WeakSet[Any] = weakref.WeakSet()

        def protocol_connected(self, protocol: Any) -> None:
            """Remember which HTTP connections have ever had a request."""
            super().protocol_connected(protocol)
            channel = getattr(protocol, "channel", None)
            if channel is not None:
                self.channels_with_requests.add(channel)

        async def handle_reply(self, protocol: Any, message: dict[str, Any]) -> None:
            """As Daphne's, but an answer behind our close frame goes nowhere instead of ending the application."""
            if hasattr(protocol, "sendCloseFrame") and protocol.state in (
                protocol.STATE_CLOSING,
                protocol.STATE_CLOSED,
            ):
                return
            await super().handle_reply(protocol, message)

        def kill_all_applications(self) -> Any:
            """As Daphne's, which stumbles over connections without an application."""
            self.connections = {
                protocol: details
                for protocol, details in self.connections.items()
                if details.get("application_instance") is not None
            }
            return super().kill_all_applications()

    forwarded: dict[str, str] = {}
    if arguments.proxy_headers:
        forwarded = {
            "proxy_forwarded_address_header": "X-Forwarded-For",
            "proxy_forwarded_port_header": "X-Forwarded-Port",
            "proxy_forwarded_proto_header": "X-Forwarded-Proto",
        }
    return DrainableServer(
        application=guarantee_single_callable(application),  # type: ignore[no-untyped-call]  # asgiref has no type for it
        signal_handlers=False,
        action_logger=AccessLogGenerator(sys.stderr) if arguments.access_log else None,
        http_timeout=arguments.http_timeout or None,
        websocket_timeout=arguments.websocket_timeout,
        websocket_connect_timeout=arguments.websocket_connect_timeout,
        # Autobahn's own limit, 5 s unless told, would cut off an application that takes longer; Daphne's refuses properly.
        websocket_handshake_timeout=arguments.websocket_connect_timeout + REFUSAL_SECONDS,
        websocket_max_message_size=arguments.message_max_bytes,
        websocket_max_frame_size=arguments.message_max_bytes,
        ping_interval=arguments.ping_interval,
        ping_timeout=arguments.ping_timeout,
        application_close_timeout=arguments.application_close_timeout,
        ready_callable=ready,
        **forwarded,
    )


def serve(arguments: argparse.Namespace, sockets: list[socket.socket], application: Any) -> None:
    """Serve until a drain has ended."""
    from twisted.internet import reactor

    # The application's children must not speak to systemd in our name.
    notify_address = os.environ.pop("NOTIFY_SOCKET", None)
    draining: list[Drain] = []

    def ready() -> None:
        loop = reactor._asyncioEventloop  # Daphne uses the same
        server.http_factory.doStart()
        server.ws_factory.setProtocolOptions(closeHandshakeTimeout=CLOSE_HANDSHAKE_SECONDS)
        connections = Connections(
            sockets,
            loop,
            lambda accepted: reactor.adoptStreamConnection(accepted.fileno(), accepted.family, server.http_factory),
        )

        def stop() -> None:
            if draining:
                draining[0].hurry()
                return
            notify("STOPPING=1\nSTATUS=Draining", notify_address)
            connections.stop()
            draining.append(
                Drain(
                    server,
                    connections,
                    arguments.drain_seconds,
                    arguments.application_close_timeout,
                    reactor.stop,
                )
            )
            draining[0].start()

        def accept() -> None:
            connections.start()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, stop)
            notify("READY=1\nSTATUS=Serving", notify_address)
            logger.info("Serving %s", arguments.application)

        reactor.callWhenRunning(accept)

    server = make_server(arguments, application, ready)
    server.run()


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Return the arguments; ends the process with code 2 when they are wrong."""
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--application", required=True, metavar="MODULE:ATTRIBUTE", help="the ASGI callable")
    parser.add_argument("--check", action="store_true", help="only import the application")
    parser.add_argument("--backlog", type=int, default=4096, help="connections that wait in the kernel")
    parser.add_argument("--drain-seconds", type=float, default=30, help="over which WebSockets are closed on SIGTERM")
    parser.add_argument("--ping-interval", type=float, default=20, help="seconds of silence before a ping")
    parser.add_argument("--ping-timeout", type=float, default=30, help="seconds that a ping may stay unanswered")
    parser.add_argument("--websocket-timeout", type=float, default=-1, help="longest life in seconds; -1: no limit")
    parser.add_argument("--websocket-connect-timeout", type=float, default=20, help="seconds to accept or reject")
    parser.add_argument("--application-close-timeout", type=float, default=10, help="seconds to handle a disconnection")
    parser.add_argument("--http-timeout", type=float, default=0, help="longest HTTP request in seconds; 0: no limit")
    parser.add_argument("--message-max-bytes", type=int, default=1048576, help="longest WebSocket message and frame")
    parser.add_argument(
        "--proxy-headers", action="store_true", help="believe X-Forwarded-*; only behind a proxy that sets them"
    )
    parser.add_argument("--access-log", action="store_true", help="log each request and WebSocket")
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error", "critical"])
    return parser.parse_args(words)


def main() -> None:
    """Entry point."""
    arguments = parse()
    # journald adds the time.
    logging.basicConfig(
        level=arguments.log_level.upper(), stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s"
    )
    # As `python -m` would: the application is found in the working directory, not beside this file.
    sys.path[0] = str(Path.cwd())
    check_daphne()
    # Before any import of Twisted, which takes the variables that name them.
    sockets = [] if arguments.check else adopted_sockets(arguments.backlog)
    # Daphne installs Twisted's asyncio reactor; that must come before the application may import one.
    importlib.import_module("daphne.server")
    application = load_application(arguments.application)
    if not arguments.check:
        serve(arguments, sockets, application)


if __name__ == "__main__":
    main()
