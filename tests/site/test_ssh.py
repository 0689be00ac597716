"""The installed collection, run over OpenSSH by a user with sudo who has no checkout (Molecule scenario ssh).

Converge and idempotence leave their runs of site.yml, at -vvv and with --diff, in `runs/`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest
from canaries import seen_in
from hosts import LOOK, ROOT, Host, Played, Site, receive

HOST = Host("quintet-ssh")
APP = "chat"
DOMAIN = "chat.example.org"
HOME = Path(os.environ.get("MOLECULE_EPHEMERAL_DIRECTORY", "/nonexistent")) / "home"
# What a converge that changes nothing may cost on a host that is everything.
REMOTE_TASKS = 30


@dataclass(frozen=True)
class Run:
    """A run of ansible-playbook as that user."""

    command: list[str]
    played: Played
    duration: str


def read_run(path: Path) -> Run:
    record = json.loads(path.read_text())
    return Run(record["cmd"], Played(record["rc"], record["stdout"] + record["stderr"]), record["delta"])


def remote_tasks(output: str) -> list[str]:
    """Return the names of the modules, or of a module's program, that a run at -vvv has executed on the host."""
    return re.findall(rf"SSH: EXEC .*(?:python\S* \S+/AnsiballZ_(?=\w+\.py(?! ))|(?={LOOK}))([\w-]+)", output)


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    found = [read_run(path) for path in sorted((HOME / "runs").iterdir())]
    assert len(found) >= 2, "converge and idempotence have not both run"
    return found


@pytest.fixture
def site() -> Site:
    return Site(HOST, DOMAIN)


def ssh(user: str, *command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    options = ["-F", str(HOME / ".ssh/config"), "-o", "BatchMode=yes"]
    return subprocess.run(
        ["ssh", *options, f"{user}@{HOST.address}", *command],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


# ---- the way in is the one that is meant --------------------------------------------------------------------------


def test_root_is_not_let_in_and_sudo_wants_a_password() -> None:
    assert "Permission denied" in ssh("root", "true").stderr
    assert ssh("deploy", "true").returncode == 0
    assert ssh("deploy", "sudo", "--non-interactive", "true").returncode != 0


def test_only_the_installed_collection_was_used(runs: list[Run]) -> None:
    installed = HOME / ".ansible/collections/ansible_collections"
    for run in runs:
        used = set(re.findall(r"^task path: (.+):\d+$", run.played.output, re.MULTILINE))
        assert len(used) > 10
        assert [path for path in used if not path.startswith(f"{installed}/quintet/django/")] == []
        # The tools themselves are the checkout's; nothing else of it may appear.
        assert re.findall(rf"{re.escape(str(ROOT))}/(?!\.venv/)\S*", run.played.output) == []


# ---- what came of it ----------------------------------------------------------------------------------------------


def test_the_site_answers_over_http(site: Site) -> None:
    health = site.get("/healthz").json
    assert health["status"] == "ok"
    assert health["generation"] == HOST.current(APP)
    assert "/rooms/lobby/" in site.get("/").body


def test_a_message_over_one_websocket_reaches_another(site: Site) -> None:
    with site.websocket("/ws/rooms/lobby/") as first, site.websocket("/ws/rooms/lobby/") as second:
        receive(second, "history")
        text = f"hello {uuid.uuid4()}"
        first.send(json.dumps({"type": "message", "ref": str(uuid.uuid4()), "text": text}))
        assert receive(second, "message")["text"] == text


def test_the_host_command_works_by_sudo() -> None:
    shown = ssh("deploy", "sudo", "--stdin", "--prompt=", "quintet", "status", APP, stdin=f"{password()}\n")
    assert shown.returncode == 0, shown.stderr
    assert HOST.current(APP) in shown.stdout


def test_the_log_says_who_changed_what_from_where() -> None:
    [activated] = [entry for entry in HOST.quintet("log", APP)["log"] if entry["action"] == "activate"][:1]
    controller = HOST.run("ip", "-4", "route", "show", "default").split()[2]
    assert (activated["result"], activated["from"], activated["before"]) == ("ok", controller, None)
    assert activated["by"].endswith(f"@{os.uname().nodename}")
    assert activated["generation"] == HOST.current(APP)
    assert activated["seconds"] > 0


def test_no_module_is_left_on_the_host() -> None:
    # Without pipelining each module comes as a file, with its arguments.
    left = HOST.run(
        "find", "/home/deploy", "/root", "/tmp", "/var/tmp", "-name", "ansible*tmp*", "-mindepth", "1", check=False
    )
    assert [path for path in left.splitlines() if "ansible-tmp" in path] == []


# ---- secrets ------------------------------------------------------------------------------------------------------


def password() -> str:
    return (HOME / "password").read_text()


def test_no_secret_is_in_what_the_runs_printed_or_the_journal_keeps(runs: list[Run]) -> None:
    secrets: dict[str, str] = json.loads(HOST.run("cat", f"/etc/quintet/{APP}/secrets.json"))
    assert set(secrets) == {"SECRET_KEY", "CHANNEL_LAYER_PASSWORD"}
    # One from Vault comes from the controller, through variables and arguments of modules.
    secrets["MAIL_PASSWORD"] = HOST.run("cat", f"/etc/quintet/{APP}/revisions/1/credentials/MAIL_PASSWORD")
    secrets["password"] = password()
    places = {
        "the first run": runs[0].played.output,
        "the last run": runs[-1].played.output,
        "the journal": HOST.run("journalctl", "--no-pager", "--output=cat"),
    }
    assert "--diff" in runs[0].command
    assert "-vvv" in runs[0].command
    for name, value in secrets.items():
        assert len(value) >= 16
        assert [place for place, text in places.items() if seen_in(text, {name: value})] == [], name


# ---- a run that changes nothing -----------------------------------------------------------------------------------


def test_it_asks_the_host_few_things(runs: list[Run]) -> None:
    last = runs[-1]
    assert last.played.changed == 0, last.played.changed_tasks
    modules = remote_tasks(last.played.output)
    print(f"\n{len(modules)} remote tasks in {last.duration}: {' '.join(modules)}")
    assert 5 < len(modules) <= REMOTE_TASKS, modules


def test_the_collections_playbook_runs_by_its_full_name(runs: list[Run]) -> None:
    assert [run.command[-1] for run in (runs[0], runs[-1])] == ["site.yml", "quintet.django.site"]
    assert runs[-1].played.changed == 0, runs[-1].played.changed_tasks
    assert runs[-1].played.count("web1", "ok") > 10
