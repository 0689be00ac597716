"""Probes: a request, HTTP or WebSocket, with what must come back (probes.json)."""

import http.client
import json
import socket
import ssl
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

from quintet_host.errors import QuintetError
from quintet_host.files import read_json_object, write_json
from quintet_host.layout import GENERATION_ID, Layout
from quintet_host.websocket import ClosedError, HandshakeRefusedError, WebSocket, WebSocketError

LONGEST_BODY = 1024 * 1024
SHOWN = 200  # characters of an answer in a message


@dataclass(frozen=True)
class Endpoint:
    """Where to connect: a unix socket, or the edge's address and port, there with TLS or without.

    `own`: that edge is another host, which balances several; it is asked for this one.
    """

    path: Path | None = None
    address: str = ""
    port: int = 0
    tls: bool = False
    own: bool = False

    @property
    def is_edge(self) -> bool:
        """Whether this is Nginx rather than a generation's own socket."""
        return self.path is None

    def __str__(self) -> str:
        if self.path is not None:
            return str(self.path)
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"

    def connect(self, timeout: float, host: str = "") -> socket.socket:
        """Return a connected socket; `timeout` in seconds, `host` is what TLS asks for. Raises OSError."""
        if self.path is None:
            plain = socket.create_connection((self.address, self.port), timeout)
            return _with_tls(plain, host) if self.tls else plain
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(timeout)
            connection.connect(str(self.path))
        except BaseException:
            connection.close()
            raise
        return connection


def _with_tls(plain: socket.socket, host: str) -> socket.socket:
    """Return the connection with TLS, by the certificate that the edge has for `host`; raises OSError when it has none.

    Whose certificate it is, is not looked at: the role has checked what it put there, this host need not know the authority that
    the site's visitors trust, and a probe carries no secret.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        return context.wrap_socket(plain, server_hostname=host.partition(":")[0] if "[" not in host else None)
    except BaseException:
        plain.close()
        raise


@dataclass(frozen=True)
class Probe:
    """One entry of probes.json.

    `expected`: members that the JSON answer must have, with these values. `status` None: any below 500.
    """

    name: str
    kind: str
    path: str
    host: str
    status: int | None
    method: str = "GET"
    scheme: str = "http"
    headers: Mapping[str, str] = field(default_factory=dict)
    origin: str | None = None
    subprotocol: str | None = None
    send: Any = None
    expected: Mapping[str, Any] | None = None
    text: str | None = None
    timeout_seconds: float = 10

    def __str__(self) -> str:
        return f"WebSocket {self.path}" if self.kind == "websocket" else f"{self.method} {self.path}"

    @property
    def wanted(self) -> str:
        """The status that must come back, in words."""
        return "a status below 500" if self.status is None else str(self.status)

    def accepts(self, status: int) -> bool:
        """Say whether this status is what must come back."""
        return status < HTTPStatus.INTERNAL_SERVER_ERROR if self.status is None else status == self.status


@dataclass(frozen=True)
class Result:
    """How a probe ended; `generation` is the id that the answer named, if it named one."""

    name: str
    ok: bool
    seconds: float
    message: str
    generation: str | None = None

    def public(self) -> dict[str, Any]:
        """Return what --json shows."""
        return {"name": self.name, "ok": self.ok, "seconds": round(self.seconds, 3), "message": self.message}


@dataclass(frozen=True)
class Probes:
    """All of an app's probes, and the edges through which they are repeated after the switch."""

    probes: tuple[Probe, ...]
    edges: tuple[Endpoint, ...] = ()

    @property
    def through_edge(self) -> tuple[tuple[Probe, Endpoint], ...]:
        """Those that can be asked through an edge, and where: it must speak their scheme, and believes nobody here that it was another."""
        return tuple(
            (probe, edge) for probe in self.probes for edge in self.edges if edge.tls == (probe.scheme == "https")
        )


class ProbeError(Exception):
    """What a probe got and what it wanted instead; `generation` is the one that the answer named, if it did."""

    def __init__(self, got: str, wanted: str, generation: str | None = None) -> None:
        super().__init__(f"got {got} instead of {wanted}")
        self.generation = generation


def load(layout: Layout, app: str, *, of: str | None = None) -> Probes:
    """Read an app's probes; raises QuintetError when they are missing or malformed.

    They are those of the inventory, or those with which the generation `of` became good, if such are kept: its code need not
    answer what was asked of later ones. The edge is always that of the inventory.
    """
    path = layout.configuration(app) / "probes.json"
    value = read_json_object(path)
    kept = read_json_object(layout.kept_probes(app, of)) if of else None
    try:
        if value is None:
            raise ValueError("no readable JSON object")
        return Probes(tuple(_parse(entry) for entry in (kept or value)["probes"]), _edges(value.get("edge")))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise QuintetError(
            f"{app}: its probes can't be used ({error!r}).",
            f"In {path}.",
            "Run the playbook that sets up this app: it writes that file.",
        ) from error


def keep(layout: Layout, app: str, identifier: str) -> None:
    """Keep the inventory's probes as those of a generation that has answered them; raises OSError."""
    value = read_json_object(layout.configuration(app) / "probes.json")
    kept = layout.kept_probes(app, identifier)
    if value is not None and value != read_json_object(kept):
        kept.parent.mkdir(mode=0o700, exist_ok=True)
        write_json(kept, value)


def _edges(edge: dict[str, Any] | None) -> tuple[Endpoint, ...]:
    if not edge:
        return ()
    ports = [(int(edge[key]), tls) for key, tls in (("port", False), ("tls_port", True)) if edge.get(key)]
    own = bool(edge.get("own"))
    return tuple(Endpoint(address=one, port=port, tls=tls, own=own) for one in edge["addresses"] for port, tls in ports)


def _parse(entry: dict[str, Any]) -> Probe:
    kind = entry["kind"]
    if kind not in ("http", "websocket"):
        raise ValueError(f"kind {kind!r} instead of http or websocket")
    origin = entry.get("origin")
    return Probe(
        name=entry["name"],
        kind=kind,
        path=entry["path"],
        host=entry["host"],
        status=entry.get("status") or (HTTPStatus.SWITCHING_PROTOCOLS if kind == "websocket" else None),
        method=entry.get("method") or "GET",
        scheme=entry.get("scheme") or ("https" if str(origin).startswith("https:") else "http"),
        headers=entry.get("headers") or {},
        origin=origin,
        subprotocol=entry.get("subprotocol"),
        send=entry.get("send"),
        expected=entry.get("json"),
        text=entry.get("text"),
        timeout_seconds=float(entry.get("timeout_seconds") or 10),
    )


def run(probe: Probe, endpoint: Endpoint) -> Result:
    """Run one probe once; never raises for what the server does."""
    began = time.monotonic()
    through = f"{probe} through {endpoint}" if endpoint.is_edge else str(probe)
    generation = None
    try:
        generation = _websocket(probe, endpoint) if probe.kind == "websocket" else _http(probe, endpoint)
        ok, message = True, f"{through}: as wanted"
    except ProbeError as error:
        ok, message, generation = False, f"{through}: {error}", error.generation
    except TimeoutError:
        ok, message = False, f"{through}: got no answer within {probe.timeout_seconds:g} s instead of {probe.wanted}"
    except (OSError, http.client.HTTPException) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        ok, message = False, f"{through}: got {reason!r} at {endpoint} instead of {probe.wanted}"
    return Result(probe.name, ok, time.monotonic() - began, message, generation)


class _Connection(http.client.HTTPConnection):
    def __init__(self, endpoint: Endpoint, probe: Probe) -> None:
        super().__init__("localhost", timeout=probe.timeout_seconds)
        self._endpoint = endpoint
        self._probe = probe

    def connect(self) -> None:
        self.sock = self._endpoint.connect(self._probe.timeout_seconds, self._probe.host)


def _headers(probe: Probe, endpoint: Endpoint) -> dict[str, str]:
    headers = {"Host": probe.host, "User-Agent": "quintet-probe"}
    if not endpoint.is_edge:
        # On a generation's own socket the probe stands where Nginx does.
        headers |= {"X-Forwarded-Proto": probe.scheme}
    if endpoint.own:
        # As the edge's site knows it, by nginx_site_probe_servers.
        headers |= {"X-Quintet-Probe": "own"}
    if probe.origin is not None:
        headers |= {"Origin": probe.origin}
    return headers | dict(probe.headers)


def _http(probe: Probe, endpoint: Endpoint) -> str | None:
    """Do an HTTP probe; returns the generation that the answer names."""
    deadline = time.monotonic() + probe.timeout_seconds
    with closing(_Connection(endpoint, probe)) as connection:
        connection.request(probe.method, probe.path, headers={**_headers(probe, endpoint), "Connection": "close"})
        # The response takes the socket from the connection once it knows that it is the last one.
        stream = connection.sock
        with connection.getresponse() as response:
            body = _read(response, stream, deadline)
    text = body.decode(errors="replace")
    answer = _json(text)
    if not probe.accepts(response.status):
        raise ProbeError(_short(f"{response.status} {text}"), probe.wanted, _generation(answer))
    if (lacks := _lacks(probe, text, answer)) is not None:
        raise ProbeError(f"{response.status} {_short(text)}", lacks, _generation(answer))
    return _generation(answer)


def _read(response: http.client.HTTPResponse, stream: socket.socket | None, deadline: float) -> bytes:
    body = b""
    while len(body) < LONGEST_BODY:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if stream is not None and stream.fileno() >= 0:
            stream.settimeout(left)
        part = response.read1(64 * 1024)
        if not part:
            if response.length:  # read1 does not tell a cut answer from a complete one
                raise http.client.IncompleteRead(body, response.length)
            break
        body += part
    return body


def _websocket(probe: Probe, endpoint: Endpoint) -> str | None:
    """Do a WebSocket probe; returns the generation that the wanted message names."""
    deadline = time.monotonic() + probe.timeout_seconds
    with closing(endpoint.connect(probe.timeout_seconds, probe.host)) as connection:
        websocket = WebSocket(connection, deadline)
        try:
            websocket.open(probe.path, _headers(probe, endpoint), probe.subprotocol)
        except HandshakeRefusedError as refusal:
            answer = _json(refusal.body)
            if not probe.accepts(refusal.status):
                raise ProbeError(_short(str(refusal)), probe.wanted) from refusal
            if (lacks := _lacks(probe, refusal.body, answer)) is not None:
                raise ProbeError(_short(f"{refusal.status} {refusal.body}"), lacks) from refusal
            return _generation(answer)
        except WebSocketError as error:
            raise ProbeError(str(error), probe.wanted) from error
        if probe.status != HTTPStatus.SWITCHING_PROTOCOLS:
            raise ProbeError("101", probe.wanted)
        try:
            return _converse(probe, websocket)
        finally:
            websocket.close()


def _converse(probe: Probe, websocket: WebSocket) -> str | None:
    """Send the probe's message and wait for the wanted one; others before it (a greeting, a history) are passed over."""
    if probe.send is None and probe.expected is None and probe.text is None:
        return None
    wanted = "a message" if probe.text is None else f"a text with {probe.text!r}"
    wanted = wanted if probe.expected is None else json.dumps(probe.expected)
    last = None
    try:
        if probe.send is not None:
            websocket.send_text(probe.send if isinstance(probe.send, str) else json.dumps(probe.send))
        while True:
            last = websocket.receive()
            answer = _json(last)
            if _lacks(probe, last, answer) is None:
                return _generation(answer)
    except ClosedError as closed:
        raise ProbeError(str(closed), wanted) from closed
    except WebSocketError as error:
        raise ProbeError(str(error), wanted) from error
    except TimeoutError as late:
        got = "no message" if last is None else _short(last)
        raise ProbeError(f"{got} within {probe.timeout_seconds:g} s", wanted, _generation(_json(last or ""))) from late


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _lacks(probe: Probe, text: str, answer: Any) -> str | None:
    """Say what the probe wants and is not in the answer, which is `answer` when read as JSON; None when all of it is."""
    if probe.text is not None and probe.text not in text:
        return f"a text with {probe.text!r}"
    for name, value in (probe.expected or {}).items():
        if not isinstance(answer, dict) or name not in answer or answer[name] != value:
            return f"{json.dumps(name)}: {json.dumps(value)}"
    return None


def _generation(answer: Any) -> str | None:
    """Return the generation that an answer names; a member of the same name that means something else does not count."""
    value = answer.get("generation") if isinstance(answer, dict) else None
    return value if isinstance(value, str) and GENERATION_ID.fullmatch(value) else None


def _short(text: str) -> str:
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= SHOWN else one_line[:SHOWN] + "…"
