"""Twenty switches under a load that counts everything, and the common way of a restart beside it (Molecule scenario deploy)."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hosts import Host, counted_remote_tasks, play_well, wait_for
from load import Background, Load, Rates, Target
from load_ledger import HANDSHAKE, MESSAGE, SOCKET, Ledger
from load_report import Drained, OldAnswers, Row, Stored, Switch, Timeline, compare, drains, old_answers

HOST = Host("quintet-deploy")
APP = "chat"
DOMAIN = "chat.test"
PLAYBOOK = "playbooks/deploy.yml"
EPHEMERAL = Path(os.environ.get("MOLECULE_EPHEMERAL_DIRECTORY", "/nonexistent"))
SOURCE = EPHEMERAL / "sample_app"

RATES = Rates()
# As the scenario's inventory says: molecule/deploy/group_vars/all/apps.yml.
KEEPALIVE_SECONDS, IDLE_SECONDS, DRAIN_SECONDS = 2, 1, 5
# Nginx looks at a connection's age when a request ends, so the last one may begin after keepalive_time and keepalive_timeout.
STATED_SECONDS = KEEPALIVE_SECONDS + IDLE_SECONDS
# What a busy machine of two cores may take between a decision and its effect.
SLACK_SECONDS = 2.0
SWITCHES = 20
# Ends of a WebSocket that a client can understand: its own, and the drain's.
GOOD_CODES = {"1000", "1012"}

# Prints the memory (PSS, kB) of each process in a unit, by unit.
MEMORY = r"""
import collections, json, pathlib, re
memory = collections.defaultdict(dict)
for process in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        unit = re.search(r"([^/]+)\.service$", (process / "cgroup").read_text(), re.MULTILINE)
        size = re.search(r"^Pss: +(\d+)", (process / "smaps_rollup").read_text(), re.MULTILINE)
    except OSError:
        continue  # it has ended
    if unit and size:
        memory[unit[1]][process.name] = int(size[1])
print(json.dumps(memory))
"""


@dataclass
class Change:
    """One switch: what was done, from when on it held, and the seconds that its command took and that passed until the rename."""

    what: str
    switch: Switch
    seconds: float
    until_switch: float
    remote_calls: int | None = None


@dataclass
class Trial:
    """The load, what was changed under it, and what came of it."""

    load: Load
    began: Switch
    changes: list[Change] = field(default_factory=list)
    # MB (PSS) of the app's servers with one generation alive, and with two.
    memory: dict[int, float] = field(default_factory=dict)
    stored: Stored = field(default_factory=Stored)
    drained: list[Drained] = field(default_factory=list)
    old: OldAnswers = field(default_factory=lambda: OldAnswers(0, 0, 0, 0))
    pruned: list[str] = field(default_factory=list)
    seconds: float = 0

    @property
    def ledger(self) -> Ledger:
        """The load's accounts."""
        return self.load.ledger


# ---- what is done to the host -------------------------------------------------------------------------------------


def sql(query: str) -> str:
    return HOST.run("runuser", "-u", "postgres", "--", "psql", "-qAtX", "-d", APP, "-c", query)


def make_rooms() -> None:
    names = f"SELECT 'load-' || n, 'load-' || n, now() FROM generate_series(0, {RATES.rooms - 1}) n"
    sql(f"INSERT INTO chat_room (name, slug, created_at) {names} ON CONFLICT DO NOTHING")


def stored_rows() -> Iterator[Row]:
    fields = "m.id, r.slug, m.client, m.ref, m.text"
    listed = sql(f"SELECT json_build_array({fields}) FROM chat_message m JOIN chat_room r ON r.id = m.room_id")
    return (Row(*json.loads(line)) for line in listed.splitlines())


def now_serving() -> Switch:
    """Return the current generation and since when: the link's change time is that of the rename."""
    return Switch(float(HOST.run("stat", "-c", "%.9Z", f"/srv/{APP}/current")), HOST.current(APP))


def processes() -> dict[str, dict[str, int]]:
    """Return the processes of the app's servers with their memory (PSS, kB), by generation."""
    found: dict[str, dict[str, int]] = {}
    for unit, memory in json.loads(HOST.run("python3", "-", stdin=MEMORY)).items():
        generation = re.search(rf"-{APP}(?:-[0-9]+)?@(.+)$", unit)
        if generation:
            found.setdefault(generation[1], {}).update(memory)
    return found


def megabytes(memory: dict[str, dict[str, int]]) -> float:
    return sum(sum(sizes.values()) for sizes in memory.values()) / 1024


def is_draining() -> bool:
    return any(one["draining"] for one in HOST.quintet("status", APP)["apps"][0]["generations"])


def wait_for_drains() -> None:
    wait_for("all drains to end", lambda: not is_draining())


def deploy(what: str, *arguments: str) -> Change:
    began = time.time()
    with counted_remote_tasks(EPHEMERAL / "counted") as count:
        play_well(PLAYBOOK, *arguments)
    switch = now_serving()
    return Change(f"playbook: {what}", switch, time.time() - began, switch.at - began, count())


def command(what: str, *arguments: str) -> Change:
    began = time.time()
    HOST.quintet(*arguments)
    switch = now_serving()
    return Change(f"quintet {what}", switch, time.time() - began, switch.at - began)


def change_code() -> None:
    view, style = SOURCE / "config/load.py", SOURCE / "chat/static/chat/chat.css"
    view.write_text(view.read_text().replace('VERSION = "1"', 'VERSION = "2"'))
    # So that its hashed name is another one.
    style.write_text(style.read_text() + "/* version 2 */\n")


def run_trial() -> Trial:
    """Change the app twenty times under load: by playbook, by rollback into a drain, and by activate in groups."""
    make_rooms()
    trial = Trial(Load(Target(HOST.address, DOMAIN), RATES), now_serving())
    began = time.monotonic()
    with Background(trial.load):
        trial.memory[1] = megabytes(processes())
        change_code()
        trial.changes.append(deploy("code"))
        trial.memory[2] = megabytes(processes())
        trial.changes.append(deploy("environment", "-e", "mark=second"))
        trial.changes.append(deploy("Gunicorn and Daphne", "-e", "mark=second", "-e", "workers=3", "-e", "processes=3"))
        # Back to what drains: its drain is called off.
        trial.changes.append(command("rollback", "rollback", APP))
        generations = list(dict.fromkeys([trial.began.generation, *(one.switch.generation for one in trial.changes)]))
        assert len(generations) == 4
        following = generations.index(trial.changes[-1].switch.generation)
        while len(trial.changes) < SWITCHES:
            # Three at once, so that two generations drain while a third begins to serve; then until all is quiet.
            if len(trial.changes) % 3 == 1:
                wait_for_drains()
            following = (following + 1) % len(generations)
            trial.changes.append(command("activate", "activate", APP, generations[following]))
        wait_for_drains()
        # The load goes on asking for the files of every page that it has seen.
        before = trial.ledger.count("static", "ok")
        HOST.quintet("prune", APP, "--keep", "1")
        left = HOST.run("ls", f"/srv/{APP}/generations").split()
        trial.pruned = [one for one in generations if one not in left]
        wait_for("files of old pages to be asked for", lambda: trial.ledger.count("static", "ok") > before + 40, 20)
    trial.seconds = time.monotonic() - began
    timeline = Timeline([trial.began, *(change.switch for change in trial.changes)])
    trial.stored = compare(trial.ledger, trial.load.chatters, trial.load.run, stored_rows())
    trial.old = old_answers(trial.ledger, timeline)
    trial.drained = drains(trial.ledger, timeline)
    return trial


# ---- what is printed ----------------------------------------------------------------------------------------------

HEADINGS = (
    "way",
    "changes",
    "HTTP failed / wrong / ok",
    "handshakes refused / failed / ok",
    "how sockets ended",
    "messages lost / twice / once (sent again)",
)


def table_row(way: str, changes: int, ledger: Ledger, stored: Stored) -> str:
    http = " / ".join(f"{ledger.total(outcome, HANDSHAKE, SOCKET, MESSAGE):,}" for outcome in ("failed", "wrong", "ok"))
    handshakes = " / ".join(f"{ledger.count(HANDSHAKE, outcome):,}" for outcome in ("refused", "failed", "ok"))
    codes = sorted((code, count) for (kind, code), count in ledger.ended.items() if kind == SOCKET and code != "1000")
    sockets = ", ".join(f"{code}: {count:,}" for code, count in codes)
    messages = f"{stored.lost} / {stored.duplicated} / {stored.once:,} ({stored.resent:,})"
    return row(way, str(changes), http, handshakes, sockets, messages)


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def show(trial: Trial) -> None:
    print(f"\n{len(trial.changes)} switches in {trial.seconds:.0f} s of load")
    for change in trial.changes:
        calls = "" if change.remote_calls is None else f", {change.remote_calls} remote tasks"
        print(f"  {change.what}: {change.until_switch:.1f} s to the switch, {change.seconds:.1f} s in all{calls}")
    print("by kind:")
    for (kind, outcome), count in sorted(trial.ledger.ended.items()):
        print(f"  {kind:<10} {outcome:<14} {count:>7,}")
    print(f"  beside: {dict(trial.ledger.notes)}")
    print("sockets of the generation before each switch, by code, and the seconds after the switch:")
    for drained in trial.drained:
        first, last = drained.window
        counts = {code: len(moments) for code, moments in drained.closed.items()}
        print(
            f"  {counts}, {first:.1f} to {last:.1f} s, fullest fifth {drained.largest_fifth:.0%}, {drained.stayed} stayed"
        )
    old = trial.old
    print(
        f"old code answered {old.count} requests, sent until {old.latest_sent:.2f} s and ended until {old.latest_done:.2f} s after a switch"
    )
    print(f"messages: {trial.stored}")
    print(
        f"memory (PSS): {trial.memory[1]:.0f} MB with one generation, {trial.memory[2]:.0f} MB with two; pruned: {trial.pruned}"
    )
    print("\n".join(trial.ledger.problems))


@pytest.fixture(scope="module")
def trial() -> Trial:
    done = run_trial()
    show(done)
    return done


# ---- nobody notices -----------------------------------------------------------------------------------------------


def test_the_accounts_agree(trial: Trial) -> None:
    trial.ledger.check()
    assert len(trial.changes) == SWITCHES
    assert len({change.switch.at for change in trial.changes}) == SWITCHES
    # Every kind of load was there, all the time.
    for kind, least in {"kept": 10, "fresh": 3, "slow": 0.5, "post": 3, "static": 3, HANDSHAKE: 3, MESSAGE: 10}.items():
        assert trial.ledger.begun[kind] > least * trial.seconds, kind
    assert len(trial.load.chatters) >= 200


def test_no_http_answer_is_lost_or_wrong(trial: Trial) -> None:
    bad = {key: count for key, count in trial.ledger.ended.items() if key[1] in ("failed", "wrong")}
    assert bad == {}, trial.ledger.problems


def test_no_handshake_is_refused(trial: Trial) -> None:
    assert trial.ledger.count(HANDSHAKE, "ok") == trial.ledger.begun[HANDSHAKE]


def test_every_old_socket_is_closed_with_1012_within_the_drain_and_spread_over_it(trial: Trial) -> None:
    codes = {outcome for kind, outcome in trial.ledger.ended if kind == SOCKET}
    assert codes == GOOD_CODES, trial.ledger.problems
    # Only the rollback came before the end of a drain, and called it off.
    called_off = next(at for at, change in enumerate(trial.changes) if "rollback" in change.what) - 1
    assert [at for at, drained in enumerate(trial.drained) if drained.stayed] in ([], [called_off])
    whole = [drained for drained in trial.drained if len(drained.closed.get(1012, [])) > RATES.chatters[0] / 2]
    # Of three switches in a row, the first finds most sockets; the others find what has come back since.
    assert len(whole) > SWITCHES / 4
    for drained in whole:
        first, last = drained.window
        # While kept connections may still bring requests, the drain has not begun.
        assert first > STATED_SECONDS, drained
        assert DRAIN_SECONDS * 0.8 < last - first < DRAIN_SECONDS + SLACK_SECONDS, drained
        # Evenly would be 20 %.
        assert drained.largest_fifth < 0.4, drained


def test_every_message_is_stored_once(trial: Trial) -> None:
    stored = trial.stored
    assert stored.once == trial.ledger.begun[MESSAGE] == trial.ledger.count(MESSAGE, "acknowledged"), stored.details
    assert (stored.lost, stored.duplicated, stored.altered, stored.unknown) == (0, 0, 0, 0)
    # Otherwise nothing would have been shown about sending again.
    assert stored.resent > 0


def test_everybody_sees_every_message(trial: Trial) -> None:
    assert trial.stored.unseen == 0, trial.stored.details[:5]


def test_old_code_answers_no_longer_than_is_stated(trial: Trial) -> None:
    assert trial.old.early == 0
    assert trial.old.latest_sent < STATED_SECONDS + 0.2
    assert trial.old.latest_done < STATED_SECONDS + RATES.slow_seconds + SLACK_SECONDS
    # Each generation was asked, and always with its own code and environment.
    assert set(trial.load.faces.values()) == {("1", "first"), ("2", "first"), ("2", "second")}
    assert len(trial.load.faces) == 4


def test_nothing_of_an_old_generation_is_left(trial: Trial) -> None:
    assert set(processes()) == {trial.changes[-1].switch.generation}
    assert HOST.run("ls", f"/run/quintet/{APP}").split() == [trial.changes[-1].switch.generation]


def test_nothing_was_killed_by_a_time_limit(trial: Trial) -> None:
    journal = HOST.run("journalctl", "--output=cat", "--unit", f"*-{APP}*@*")
    # As often as something was stopped: the journal does tell about it.
    assert journal.count("Drained") >= SWITCHES - 2
    assert re.findall(r".*(?:timed out|Killing|SIGKILL|did not end in time).*", journal) == []


def test_files_of_old_pages_are_found_after_their_generation_is_pruned(trial: Trial) -> None:
    assert trial.pruned
    styles = [path for path in trial.load.files if path.startswith("/static/chat/chat.")]
    assert len(styles) == 2
    # Each was read: the load keeps a digest of its content, and it never was another.
    assert all(trial.load.files.values())
    assert trial.ledger.count("static", "ok") == trial.ledger.begun["static"]


# ---- the common way: the load has teeth -----------------------------------------------------------------------------


@dataclass
class Common:
    """The same app as one Gunicorn and one Daphne service, as their documentation shows them."""

    units = ("common-gunicorn.service", "common-daphne.service")

    def start(self) -> None:
        files = Path(__file__).resolve().parents[2] / "molecule/deploy/files/common"
        generation = f"/srv/{APP}/generations/{HOST.current(APP)}"
        manifest = json.loads(HOST.run("cat", f"{generation}/generation.json"))
        # Its settings and secrets; the sandbox is no part of the common way.
        properties = [one for one in manifest["properties"] if one.startswith(("Environment", "LoadCredential"))]
        properties += [f"User={manifest['user']}", f"Group={manifest['group']}"]
        HOST.run("sh", "-c", f"mkdir -p /srv/common && ln -sfn {generation}/src {generation}/venv /srv/common/")
        for unit in self.units:
            directory = f"/run/systemd/system/{unit}.d"
            self._write(f"/run/systemd/system/{unit}", (files / unit).read_text())
            self._write(f"{directory}/app.conf", "\n".join(["[Service]", *properties, ""]))
        HOST.run("systemctl", "daemon-reload")
        HOST.run("systemctl", "start", *self.units)
        make_rooms()

    def stop(self) -> None:
        HOST.run("systemctl", "stop", *self.units)

    def _write(self, path: str, content: str) -> None:
        HOST.run("sh", "-c", f"mkdir -p {Path(path).parent} && cat > {path}", stdin=content)


CHANGES = 3
WAYS = {
    "reload of Gunicorn, restart of Daphne": [["reload", "common-gunicorn"], ["restart", "common-daphne"]],
    "restart of both": [["restart", "common-gunicorn", "common-daphne"]],
}


@pytest.fixture(scope="module")
def common() -> Iterator[Common]:
    services = Common()
    services.start()
    yield services
    services.stop()


def suffer(commands: list[list[str]]) -> tuple[Ledger, Stored]:
    """Put the same load on the common way and restart it; nothing of the code changes."""
    load = Load(Target(HOST.address, "common.test"), RATES)
    with Background(load):
        for _ in range(CHANGES):
            wait_for("all chatters to be there", lambda: all(chatter.connection for chatter in load.chatters))
            for words in commands:
                HOST.run("systemctl", *words)
        wait_for("all chatters to be back", lambda: all(chatter.connection for chatter in load.chatters))
    load.ledger.check()
    return load.ledger, compare(load.ledger, load.chatters, load.run, stored_rows())


@pytest.mark.thorough
@pytest.mark.usefixtures("common")
def test_the_same_load_counts_the_losses_of_the_common_way(trial: Trial) -> None:
    measured = {way: suffer(commands) for way, commands in WAYS.items()}
    rows = [table_row("quintet", len(trial.changes), trial.ledger, trial.stored)]
    rows += [table_row(way, CHANGES, ledger, stored) for way, (ledger, stored) in measured.items()]
    print("\n".join(["", row(*HEADINGS), row(*["---"] * len(HEADINGS)), *rows]))
    for way, (ledger, _) in measured.items():
        assert ledger.count(SOCKET, "1006") >= RATES.chatters[0], way
        assert ledger.count(HANDSHAKE, "ok") < ledger.begun[HANDSHAKE], way
        assert ledger.count(SOCKET, "1012") < ledger.count(SOCKET, "1006"), way
    restarted, _ = measured["restart of both"]
    assert restarted.total("failed", HANDSHAKE) + restarted.total("wrong") > 0
