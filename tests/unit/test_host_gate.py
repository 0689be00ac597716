"""A host that comes back lets nobody in before its probes pass."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from host_support import A, Machine, machine
from quintet_host import gate
from quintet_host.drain import boot
from quintet_host.errors import QuintetError
from quintet_host.status import app_status, as_text
from quintet_host.switch import activate
from quintet_host.system import Answer


@pytest.fixture
def here(tmp_path: Path) -> Machine:
    """Give a host behind an edge that has gone down with its app."""
    host = machine(tmp_path)
    host.add(A)
    host.serve(A)
    host.system.active.clear()
    (host.layout.settings("shop")).write_text(json.dumps({"gate": "ssl_reject_handshake on;"}))
    return host


def test_a_boot_closes_the_gate_before_anything_starts_and_has_it_opened_later(here: Machine) -> None:
    here.system.broken.add(f"daphne-shop-1@{A}.service")
    with pytest.raises(QuintetError):
        boot(here.host, "shop")
    assert here.layout.gate("shop").read_text() == "ssl_reject_handshake on;\n"
    assert here.system.detached[0] == ("/usr/local/sbin/quintet", "rejoin", "shop", "--by", "me@desk")


def test_a_host_that_people_ask_themselves_has_no_gate(here: Machine) -> None:
    here.layout.settings("shop").write_text(json.dumps({"gate": ""}))
    boot(here.host, "shop")
    assert not here.layout.gate("shop").exists()
    assert here.system.detached == []


def test_a_boot_by_hand_shuts_nobody_out(here: Machine) -> None:
    here.system.active[f"gunicorn-shop@{A}.socket"] = "active"
    boot(here.host, "shop")
    assert not here.layout.gate("shop").exists()


def test_the_gate_opens_when_all_probes_pass_and_not_before(here: Machine) -> None:
    boot(here.host, "shop")
    here.app.sick.add((A, "own"))
    reports: list[str] = []

    def look(seconds: float) -> None:
        here.clock.slept += seconds
        assert here.layout.gate("shop").exists()
        assert ("reload nginx",) not in here.system.calls
        if here.clock.slept > 5:
            here.app.sick.clear()

    here.clock.sleep = look  # type: ignore[method-assign]
    object.__setattr__(here.host, "report", reports.append)
    assert gate.rejoin(here.host, "shop") == "shop: all probes pass, its gate is open."
    assert not here.layout.gate("shop").exists()
    assert here.system.calls[-1] == ("reload nginx",)
    # Said once, not each second.
    assert len([line for line in reports if "its gate stays closed" in line]) == 1
    assert here.log()[-1] == ("rejoin", "ok")


def test_where_nginx_cannot_reload_the_gate_stays_closed_and_it_is_tried_again(here: Machine) -> None:
    boot(here.host, "shop")
    here.system.nginx = [Answer(False, "emerg")]
    closed = []

    def look(_: float) -> None:
        closed.append(here.layout.gate("shop").exists())

    here.clock.sleep = look  # type: ignore[method-assign,assignment]
    gate.rejoin(here.host, "shop")
    assert closed == [True]
    assert not here.layout.gate("shop").exists()


def test_a_closed_gate_is_seen_and_a_run_says_why(here: Machine) -> None:
    boot(here.host, "shop")
    status = app_status(here.host, "shop")
    assert (status["gate"], status["healthy"]) == ("closed", False)
    assert f"serves nobody until the probes of {A} pass" in as_text(status)
    here.app.sick.add((A, "own"))
    with pytest.raises(QuintetError, match="failed the probe 'health'"):
        activate(here.host, "shop", A)
    here.app.sick.clear()
    assert "its gate opens" in activate(here.host, "shop", A).message
    gate.rejoin(here.host, "shop")
    status = app_status(here.host, "shop")
    assert (status["gate"], status["healthy"]) == ("open", True)
