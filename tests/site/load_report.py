"""What a ledger says about switches and about what the database has."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from load import Chatter
from load_ledger import Ledger, Message, Socket


@dataclass(frozen=True)
class Switch:
    """From `at` on (seconds of the epoch) new connections reach `generation`."""

    at: float
    generation: str


@dataclass(frozen=True)
class Timeline:
    """The switches in their order; the first one says what served when the load began."""

    switches: Sequence[Switch]

    def since(self, generation: str, at: float) -> float | None:
        """Return for how many seconds a generation no longer serves, 0 while it does, None when it never did."""
        left: float | None = None
        for one, following in zip(self.switches, [*self.switches[1:], Switch(float("inf"), "")], strict=True):
            if one.generation == generation and one.at <= at:
                left = max(0.0, at - following.at)
        return left

    def next_turn(self, generation: str, at: float) -> float:
        """Return when a generation serves again after `at`; infinity for never."""
        return min(
            (one.at for one in self.switches if one.generation == generation and one.at > at), default=float("inf")
        )


@dataclass(frozen=True)
class OldAnswers:
    """How long after a switch the generation before it answered, in seconds; `early`: answers before it served at all."""

    count: int
    latest_sent: float
    latest_done: float
    early: int


def old_answers(ledger: Ledger, timeline: Timeline) -> OldAnswers:
    """Return what HTTP answers came from a generation that no longer was, or not yet was, current."""
    lags = [
        (timeline.since(answer.generation, answer.sent_at), timeline.since(answer.generation, answer.done_at))
        for answer in ledger.answers
    ]
    done = [lag for _, lag in lags if lag is not None]
    return OldAnswers(
        count=sum(lag > 0 for lag in done),
        latest_sent=max((lag for lag, _ in lags if lag is not None), default=0.0),
        latest_done=max(done, default=0.0),
        early=len(lags) - len(done),
    )


@dataclass(frozen=True)
class Drained:
    """A generation's WebSockets after a switch: when each was closed, in seconds after it, by code; and how many stayed."""

    at: float
    generation: str
    closed: dict[int, list[float]]
    stayed: int

    @property
    def window(self) -> tuple[float, float]:
        """The first and the last close with 1012."""
        moments = self.closed.get(1012) or [0.0]
        return min(moments), max(moments)

    @property
    def largest_fifth(self) -> float:
        """The share of closes with 1012 in the fullest fifth of the window; 0.2 is perfectly even."""
        moments = self.closed.get(1012) or [0.0]
        first, last = self.window
        fifths = Counter(min(int((moment - first) / ((last - first) or 1) * 5), 4) for moment in moments)
        return max(fifths.values()) / len(moments)


def drains(ledger: Ledger, timeline: Timeline) -> list[Drained]:
    """Return for each switch what became of the chatters' sockets of the generation before it, until it served again."""
    found = []
    for before, switch in zip(timeline.switches, timeline.switches[1:], strict=False):
        again_at = timeline.next_turn(before.generation, switch.at)
        closed: dict[int, list[float]] = defaultdict(list)
        stayed = 0
        for socket in ledger.sockets:
            if socket.kind == "chat" and socket.generation == before.generation and _is_open(socket, switch.at):
                closed_at = socket.closed_at or float("inf")
                if closed_at < again_at:
                    closed[socket.code or 0].append(closed_at - switch.at)
                else:
                    stayed += 1
        found.append(Drained(switch.at, before.generation, dict(closed), stayed))
    return found


def _is_open(socket: Socket, at: float) -> bool:
    return socket.opened_at < at < (socket.closed_at or float("inf"))


@dataclass(frozen=True)
class Row:
    """A message as the database has it."""

    identifier: int
    room: str
    client: str
    ref: str
    text: str


@dataclass
class Stored:
    """The load's messages by what the database has of them; every message and every row is in one of the counts."""

    once: int = 0
    lost: int = 0
    duplicated: int = 0
    # Under another id, room, client, ref or text than was acknowledged.
    altered: int = 0
    unacknowledged_but_stored: int = 0
    unacknowledged: int = 0
    unknown: int = 0
    resent: int = 0
    # Messages that a chatter did not see though it saw an earlier and a later one.
    unseen: int = 0
    details: list[str] = field(default_factory=list)


def compare(ledger: Ledger, chatters: Sequence[Chatter], run: str, rows: Iterable[Row]) -> Stored:
    """Compare what was acknowledged with what is stored; rows that this run did not write are passed over."""
    stored = Stored(resent=sum(message.sent > 1 for message in ledger.messages))
    by_number: dict[int, list[Row]] = defaultdict(list)
    in_room: dict[str, set[int]] = defaultdict(set)
    for row in rows:
        in_room[row.room].add(row.identifier)
        words = row.text.split()
        if words and words[0] == run:
            by_number[int(words[1])].append(row)
    for message in ledger.messages:
        found = by_number.pop(message.number, [])
        outcome = _fate(message, found)
        setattr(stored, outcome, getattr(stored, outcome) + 1)
        if outcome != "once":
            stored.details.append(f"{outcome}: {message}: {found}")
    stored.unknown = sum(map(len, by_number.values()))
    for chatter in chatters:
        if chatter.seen:
            first, last = min(chatter.seen), max(chatter.seen)
            missed = {one for one in in_room[chatter.room] if first <= one <= last} - chatter.seen
            stored.unseen += len(missed)
            if missed:
                stored.details.append(f"unseen by {chatter.client} in {chatter.room}: {sorted(missed)}")
    return stored


def _fate(message: Message, found: Sequence[Row]) -> str:
    if len(found) > 1:
        return "duplicated"
    if message.acknowledged_as is None:
        return "unacknowledged_but_stored" if found else "unacknowledged"
    if not found:
        return "lost"
    wanted = Row(message.acknowledged_as, message.room, message.client, message.ref, message.text)
    return "once" if found[0] == wanted else "altered"
