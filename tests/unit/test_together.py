"""Several hosts of an app, together or not at all: rollback.yml played on this machine, with a host command that only takes notes."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from rendering import ROOT

OLD, NEW = "11111111", "22222222"

# Answers as the host command would, unless told to fail; notes which host asked what.
HOST_COMMAND = """\
#!/bin/sh
host=${0##*-} call=$1
echo "$host $*" >> {notes}
case " {failing} " in *" $host:$call "*) echo "quintet: $call is refused on $host" >&2; exit 1;; esac
[ "$host:$call" = "{cutting}" ] && touch {folder}/cut
case $call in status) cat {folder}/$host.json;; *) echo '{"changed": true, "message": "done"}';; esac
"""


@dataclass(frozen=True)
class Played:
    """A run of the playbook, and for each host the calls of the host command that change something."""

    code: int
    output: str
    calls: dict[str, list[str]]


def status(suffix: str, **change: object) -> str:
    app = {
        "app": "shop",
        "current": f"{NEW}-{suffix}",
        "previous": f"{OLD}-{suffix}",
        "hold": None,
        "lock": None,
        "generations": [{"generation": f"{release}-{suffix}", "state": "good"} for release in (NEW, OLD)],
    }
    return json.dumps({"apps": [{**app, **change}]})


class Site:
    """Two hosts, which are this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.unreachable = ""
        # The host that is unreachable once this call, such as a:rollback, was made.
        self.lost, self.cutting = "", ""
        (folder / "a.json").write_text(status("0000000a"))
        (folder / "b.json").write_text(status("0000000b"))

    def connection(self, host: str) -> str:
        """Return how a host is reached; over SSH it is not."""
        if host == self.lost:
            return f"{{{{ 'ssh' if '{self.folder}/cut' is exists else 'local' }}}}"
        return "ssh" if host == self.unreachable else "local"

    def play(self, *arguments: str, failing: str = "") -> Played:
        notes = self.folder / "notes"
        notes.write_text("")
        for host in "ab":
            script = self.folder / f"quintet-{host}"
            text = HOST_COMMAND.replace("{notes}", str(notes)).replace("{failing}", failing)
            text = text.replace("{cutting}", self.cutting)
            script.write_text(text.replace("{folder}", str(self.folder)))
            script.chmod(0o755)
        hosts = {
            host: {
                "ansible_connection": self.connection(host),
                "ansible_host": "127.0.0.1",
                # Nobody listens there.
                "ansible_port": 1,
                "ansible_python_interpreter": "{{ ansible_playbook_python }}",
            }
            for host in "ab"
        }
        inventory = self.folder / "hosts.json"
        apps = [{"name": "shop", "source": {"directory": "src"}}]
        inventory.write_text(
            json.dumps({"all": {"children": {"app": {"hosts": hosts}}, "vars": {"django_apps": apps}}})
        )
        command = json.dumps({"__django_app_command": [f"{self.folder}/quintet-{{{{ inventory_hostname }}}}"]})
        done = subprocess.run(
            ["ansible-playbook", "-i", str(inventory), "playbooks/rollback.yml", "-e", command, *arguments],
            cwd=ROOT,
            env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "NO_COLOR": "1", "COLUMNS": "400"},
            capture_output=True,
            text=True,
            check=False,
        )
        lines = [line.split() for line in notes.read_text().splitlines()]
        calls = {host: [line[1] for line in lines if line[0] == host and line[1] != "status"] for host in "ab"}
        return Played(done.returncode, done.stdout + done.stderr, calls)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_all_hosts_go_back_and_confirm(site: Site) -> None:
    played = site.play("-e", "app=shop")
    assert played.code == 0, played.output
    assert played.calls == {host: ["begin", "rollback", "confirm"] for host in "ab"}
    notes = (site.folder / "notes").read_text()
    assert f"a rollback shop {OLD}-0000000a --token" in notes
    assert f"b rollback shop {OLD}-0000000b --token" in notes
    tokens = {line.split("--token ")[1].split()[0] for line in notes.splitlines() if "--token" in line}
    assert len(tokens) == 2  # one a host


def test_where_one_host_fails_the_other_takes_it_back(site: Site) -> None:
    played = site.play("-e", "app=shop", failing="b:rollback")
    assert played.code != 0
    assert played.calls == {"a": ["begin", "rollback", "undo"], "b": ["begin", "rollback", "undo"]}
    assert "app 'shop' stays as it was on a, since b could not follow." in played.output
    assert "quintet: rollback is refused on b" in played.output


def test_hosts_go_back_one_after_the_other(site: Site) -> None:
    site.play("-e", "app=shop")
    asked = [line.split()[:2] for line in (site.folder / "notes").read_text().splitlines()]
    turns = [host for host, call in asked if call == "rollback"]
    assert sorted(turns) == ["a", "b"]
    # Nothing is confirmed before all have had their turn.
    assert {call for _, call in asked[-2:]} == {"confirm"}


def test_where_the_first_fails_no_other_host_is_touched(site: Site) -> None:
    played = site.play("-e", "app=shop", failing="a:rollback")
    assert played.code != 0
    assert played.calls == {"a": ["begin", "rollback", "undo"], "b": ["begin", "undo"]}
    assert "app 'shop' stays as it was on b, since a could not follow." in played.output
    assert "b failed elsewhere" not in played.output


def test_a_host_that_is_lost_before_its_turn_takes_the_others_back(site: Site) -> None:
    site.lost, site.cutting = "b", "a:rollback"
    played = site.play("-e", "app=shop")
    assert played.code != 0
    assert played.calls == {"a": ["begin", "rollback", "undo"], "b": ["begin"]}
    told = " ".join(played.output.split())
    assert (
        "b failed elsewhere, or can't be reached any more. A switch it takes back by itself, within 360 seconds."
        in told
    )


def test_where_the_lock_is_refused_on_one_host_nothing_stays_switched_or_locked(site: Site) -> None:
    played = site.play("-e", "app=shop", failing="a:begin")
    assert played.code != 0
    assert played.calls["a"] == ["begin"]
    assert played.calls["b"][-1] == "undo"
    assert "confirm" not in played.calls["b"]


def test_a_host_that_cannot_be_reached_holds_up_the_others(site: Site) -> None:
    site.unreachable = "b"
    played = site.play("-e", "app=shop")
    assert played.code != 0
    assert played.calls == {"a": [], "b": []}
    assert "b failed elsewhere, or can't be reached any more." in played.output


def test_a_lost_confirmation_is_told(site: Site) -> None:
    played = site.play("-e", "app=shop", failing="b:confirm")
    assert played.code != 0
    assert "app 'shop' on b: the switch was not confirmed." in played.output


def test_different_previous_releases_have_to_be_decided(site: Site) -> None:
    (site.folder / "b.json").write_text(status("0000000b", previous="33333333-0000000b"))
    played = site.play("-e", "app=shop")
    assert played.calls == {"a": [], "b": []}
    assert f"the hosts have no previous release in common ({OLD}, 33333333)" in played.output
    named = site.play("-e", "app=shop", "-e", f"generation={OLD}", "-e", "accept_migrations=true")
    assert named.code == 0, named.output
    assert named.calls == {host: ["begin", "rollback", "confirm"] for host in "ab"}
    assert "--accept-migrations" in (site.folder / "notes").read_text()


def test_check_mode_tells_and_calls_nothing(site: Site) -> None:
    played = site.play("-e", "app=shop", "--check")
    assert played.code == 0, played.output
    assert played.calls == {"a": [], "b": []}
    assert f"would switch from {NEW}-0000000a to generation {OLD}-0000000a of app 'shop'" in played.output


def test_a_wrong_app_is_told_the_apps(site: Site) -> None:
    played = site.play("-e", "app=shp")
    assert played.code != 0
    assert "-e app=shp: there is no such app. Name one of shop," in " ".join(played.output.split())
    assert played.calls == {"a": [], "b": []}


def test_a_run_beside_another_deploy_touches_nothing(site: Site) -> None:
    lock = {
        "holder": "ann@laptop",
        "since": "2026-11-23T20:43:00Z",
        "command": f"deploy shop {NEW}",
        "heard": "2026-11-23T20:44:00Z",
    }
    (site.folder / "a.json").write_text(status("0000000a", lock={**lock, "controller": None}))
    played = site.play("-e", "app=shop")
    assert played.code != 0
    assert played.calls == {"a": [], "b": []}
    assert "shop: is being changed by ann@laptop since 2026-11-23T20:43:00Z" in " ".join(played.output.split())
    broken = site.play("-e", "app=shop", "-e", "django_app_break_lock=true")
    assert broken.calls == {host: ["begin", "rollback", "confirm"] for host in "ab"}
    assert "a begin shop" in (notes := (site.folder / "notes").read_text())
    assert "--take-over" in notes


def test_a_host_that_serves_the_earlier_release_already_is_held_with_the_others(site: Site) -> None:
    there = {"current": f"{OLD}-0000000b", "previous": f"{NEW}-0000000b"}
    (site.folder / "b.json").write_text(status("0000000b", **there))
    played = site.play("-e", "app=shop", "-e", f"generation={OLD}")
    assert played.code == 0, played.output
    assert played.calls == {host: ["begin", "rollback", "confirm"] for host in "ab"}
    hold = {"generation": f"{OLD}-0000000b", "since": "", "by": ""}
    (site.folder / "b.json").write_text(status("0000000b", **there, hold=hold))
    played = site.play("-e", "app=shop", "-e", f"generation={OLD}")
    assert played.calls["b"] == []
