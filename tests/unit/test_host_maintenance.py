"""Maintenance by the host command: the mark that Nginx looks for, and the WebSockets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from host_support import A, Machine, serving
from quintet_host.cli import main

DAPHNE = f"daphne-shop-1@{A}.service"


@pytest.fixture
def here(tmp_path: Path) -> Machine:
    machine = serving(tmp_path)
    site = machine.host.layout.edge_site("shop")
    site.parent.mkdir(parents=True)
    site.touch()
    return machine


def asked(here: Machine, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["maintenance", "shop", *words, "--json", "--by", "ann"], here.host) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_on_status_off(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    mark = here.host.layout.maintenance("shop")
    assert asked(here, capsys)["maintenance"] is None
    begun = asked(here, capsys, "on")
    assert (begun["changed"], begun["maintenance"]) == (True, {"since": here.host.now(), "by": "ann"})
    assert mark.parent.stat().st_mode & 0o777 == 0o755, "Nginx's workers look into it"
    assert asked(here, capsys, "on")["changed"] is False
    assert asked(here, capsys, "status")["maintenance"]["by"] == "ann"
    assert not here.system.calls, "open WebSockets stay unless told otherwise"
    assert main(["status", "shop"], here.host) == 0
    assert f"in maintenance since {here.host.now()} by ann (quintet maintenance shop off)" in capsys.readouterr().out
    assert (asked(here, capsys, "off")["changed"], mark.exists()) == (True, False)
    assert asked(here, capsys, "off")["changed"] is False
    assert [(one["action"], one["result"]) for one in here.host.store("shop").read_log()][-2:] == [
        ("maintenance", "on"),
        ("maintenance", "off"),
    ]


def test_a_mark_of_anybodys_counts(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    mark = here.host.layout.maintenance("shop")
    mark.parent.mkdir(parents=True)
    mark.touch()
    assert asked(here, capsys)["maintenance"] == {"since": "", "by": ""}
    assert asked(here, capsys, "off")["changed"] is True


def test_websockets_are_closed_by_daphnes_drain(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    answer = asked(here, capsys, "on", "--close-websockets")
    assert answer["closed_websockets"] is True
    assert here.system.calls == [("restart", DAPHNE)]


def test_a_daphne_that_stays_away_fails(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    here.system.broken.add(DAPHNE)
    assert main(["maintenance", "shop", "on", "--close-websockets"], here.host) == 1
    assert f"{DAPHNE} did not start again" in capsys.readouterr().err


@pytest.mark.parametrize("state", ["on", "off"])
def test_a_host_that_is_no_edge_says_where_to_go(here: Machine, capsys: pytest.CaptureFixture[str], state: str) -> None:
    here.host.layout.edge_site("shop").unlink()
    assert main(["maintenance", "shop", state], here.host) == 1
    assert "playbooks/maintenance.yml" in capsys.readouterr().err
    assert not here.host.layout.maintenance("shop").exists()


def test_a_host_that_is_no_edge_closes_its_websockets(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    here.host.layout.edge_site("shop").unlink()
    assert asked(here, capsys, "status", "--close-websockets")["changed"] is True
    assert here.system.calls == [("restart", DAPHNE)]
