"""What a load has asked for and how each of it ended: every attempt has a number and exactly one outcome."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from dataclasses import dataclass, field

# Kinds of attempts beside those of HTTP.
HANDSHAKE = "handshake"
SOCKET = "socket"
MESSAGE = "message"
PROBLEMS_KEPT = 200


@dataclass(frozen=True)
class Answered:
    """A right HTTP answer that names its generation; times are seconds of the epoch."""

    kind: str
    generation: str
    sent_at: float
    done_at: float


@dataclass
class Socket:
    """A WebSocket from its accepted handshake to its end; `code` as the client saw it, 1006 for an end without a frame."""

    kind: str
    opened_at: float
    generation: str | None = None
    closed_at: float | None = None
    code: int | None = None
    # Whose it was, if it was a chatter's.
    client: str = ""


@dataclass
class Message:
    """A chat message; `text` is its own, so that the same one stored twice is seen whatever its `ref` is."""

    number: int
    room: str
    client: str
    ref: str
    text: str
    sent: int = 0
    acknowledged_as: int | None = None


@dataclass
class Ledger:
    """The accounts. An attempt is open from `begin` to its one `end`; `check` says when the sums don't agree."""

    begun: Counter[str] = field(default_factory=Counter)
    ended: Counter[tuple[str, str]] = field(default_factory=Counter)
    open: dict[int, str] = field(default_factory=dict)
    # What went wrong, one line each, the first PROBLEMS_KEPT of them; `ended` counts them all.
    problems: list[str] = field(default_factory=list)
    answers: list[Answered] = field(default_factory=list)
    sockets: list[Socket] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    # What is neither an attempt nor a loss: kept connections that had ended before they were used again, broadcasts, and so on.
    notes: Counter[str] = field(default_factory=Counter)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def begin(self, kind: str) -> int:
        """Return the number of a new attempt."""
        number = next(self._numbers)
        self.begun[kind] += 1
        self.open[number] = kind
        return number

    def end(self, number: int, outcome: str, problem: str = "") -> None:
        """Give an attempt its outcome; raises KeyError when it has one already."""
        kind = self.open.pop(number)
        self.ended[kind, outcome] += 1
        if problem:
            self.problem(f"{kind} {number} {outcome}: {problem}")

    def problem(self, text: str) -> None:
        """Keep a line about something that went wrong."""
        if len(self.problems) < PROBLEMS_KEPT:
            self.problems.append(f"{time.time():.3f} {text}")

    def count(self, kind: str, outcome: str) -> int:
        """Return how many attempts of a kind had an outcome."""
        return self.ended[kind, outcome]

    def total(self, outcome: str, *but: str) -> int:
        """Return how many attempts of all kinds but the named ones had an outcome."""
        return sum(count for (kind, ended), count in self.ended.items() if ended == outcome and kind not in but)

    def check(self) -> None:
        """Raise AssertionError when anything is open, or counted less or more than once."""
        ended: Counter[str] = Counter()
        for (kind, _), count in self.ended.items():
            ended[kind] += count
        assert not self.open, f"{len(self.open)} attempts have no outcome: {sorted(set(self.open.values()))}"
        assert ended == self.begun, f"begun {dict(self.begun)}, ended {dict(ended)}"
        assert self.ended[HANDSHAKE, "ok"] == self.begun[SOCKET] == len(self.sockets)
        assert all(socket.code is not None for socket in self.sockets)
        codes = Counter(str(socket.code) for socket in self.sockets)
        assert codes == {outcome: count for (kind, outcome), count in self.ended.items() if kind == SOCKET}
        assert self.begun[MESSAGE] == len(self.messages)
        acknowledged = sum(message.acknowledged_as is not None for message in self.messages)
        assert acknowledged == self.ended[MESSAGE, "acknowledged"]
