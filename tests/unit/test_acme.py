"""Certificates by ACME on an edge, with a certbot and an Nginx that only pretend."""

from __future__ import annotations

import base64
import dataclasses
import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import acme
import pytest

NOW = 1_000_000_000.0
DAY = acme.DAY
SETTINGS: dict[str, Any] = {
    "names": ["shop.test", "www.shop.test"],
    "directory": "https://ca.test/dir",
    "staging": False,
    "email": "",
    "bundle": "/bundle.pem",
    "port": 443,
}


def pem(text: str) -> str:
    body = base64.b64encode(text.encode()).decode()
    return f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n"


@dataclasses.dataclass
class Fake:
    """Certbot numbers its certificates; Nginx serves what the links name when it is told to read them."""

    layout: acme.Layout
    asked: list[list[str]] = dataclasses.field(default_factory=list)
    bundles: list[str] = dataclasses.field(default_factory=list)
    is_down: bool = False
    refuses: str = ""
    is_running: bool = True
    is_deaf: bool = False
    reloads: int = 0
    shown: dict[str, bytes] = dataclasses.field(default_factory=dict)
    life: tuple[float, float] = (NOW - DAY, NOW + 89 * DAY)

    def certbot(self, arguments: Sequence[str], bundle: str) -> tuple[bool, str]:
        self.asked.append(list(arguments))
        self.bundles.append(bundle)
        if self.is_down:
            return False, "Saving debug log to x\nConnection refused\n"
        name = arguments[arguments.index("--cert-name") + 1]
        live = self.layout.state / "live" / name
        live.mkdir(parents=True, exist_ok=True)
        number = len(self.asked)
        (live / "fullchain.pem").write_text(pem(f"{name} {number}") + pem("authority"))
        (live / "cert.pem").write_text(pem(f"{name} {number}"))
        (live / "privkey.pem").write_text(f"key {number}\n")
        return True, ""

    def dates(self, certificate: Path) -> tuple[float, float]:
        assert certificate.is_file()
        return self.life

    def test(self) -> tuple[bool, str]:
        return not self.refuses, self.refuses

    def reload(self) -> bool:
        self.reloads += 1
        if self.is_running and not self.is_deaf:
            self.read()
        return self.is_running

    def read(self) -> None:
        for link in self.layout.sites.glob("*/acme"):
            first = (link / "certificate.pem").read_text().partition("-----END")[0].splitlines()[1]
            self.shown[link.parent.name] = base64.b64decode(first)

    def served(self, site: acme.Site) -> bytes | None:
        return self.shown.get(site.name) if self.is_running else None


def add_site(layout: acme.Layout, name: str, **settings: Any) -> None:
    directory = layout.sites / name
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "acme.json").write_text(json.dumps({**SETTINGS, **settings}))
    (directory / "0000000000000000").mkdir(exist_ok=True)
    (directory / "0000000000000000/certificate.pem").write_text(pem("the host's own"))
    if not (directory / "acme").is_symlink():
        (directory / "acme").symlink_to("0000000000000000")
    file = layout.root / f"etc/nginx/quintet/sites/{name}.conf"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"ssl_certificate /etc/nginx/quintet-tls/{name}/acme/certificate.pem;\n")


@pytest.fixture
def layout(tmp_path: Path) -> acme.Layout:
    made = acme.Layout(tmp_path)
    for path in (made.trees, made.state):
        path.mkdir(parents=True)
    add_site(made, "shop")
    return made


@pytest.fixture(autouse=True)
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acme.time.time", lambda: NOW)


@pytest.fixture
def system(layout: acme.Layout) -> Fake:
    fake = Fake(layout)
    fake.read()
    return fake


def run(
    layout: acme.Layout, system: Fake, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, list[str], str]:
    code = acme.main(arguments, layout, system)
    out, err = capsys.readouterr()
    return code, json.loads(out)["changed"], err


def test_a_first_certificate_is_asked_for_once_and_served(
    layout: acme.Layout, system: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(layout, system, capsys, "issue", "shop") == (0, ["shop"], "")
    assert system.shown["shop"] == b"shop 1"
    (asked,) = system.asked
    assert asked[-4:] == ["--domain", "shop.test", "--domain", "www.shop.test"]
    assert asked[asked.index("--server") + 1] == "https://ca.test/dir"
    assert "--keep-until-expiring" in asked
    assert system.bundles == ["/bundle.pem"]
    directory = (layout.sites / "shop/acme").resolve()
    assert oct((directory / "key.pem").stat().st_mode) == "0o100600"
    assert run(layout, system, capsys, "issue", "shop") == (0, [], "")
    assert (len(system.asked), system.reloads) == (1, 1)


@pytest.mark.parametrize(
    ("settings", "has", "has_not"),
    [
        ({"directory": ""}, [], ["--server", "--staging"]),
        ({"directory": "", "staging": True}, ["--staging"], ["--server"]),
        ({"email": "a@b.test"}, ["--email"], ["--register-unsafely-without-email"]),
    ],
)
def test_what_certbot_is_told(
    layout: acme.Layout,
    system: Fake,
    capsys: pytest.CaptureFixture[str],
    settings: dict[str, Any],
    has: list[str],
    has_not: list[str],
) -> None:
    add_site(layout, "shop", **settings)
    run(layout, system, capsys, "issue", "shop")
    assert set(has) <= set(system.asked[0])
    assert not set(has_not) & set(system.asked[0])


@pytest.mark.parametrize("change", [{"names": ["shop.test"]}, {"directory": "https://other.test"}, {"staging": True}])
def test_another_name_or_authority_is_another_certificate(
    layout: acme.Layout, system: Fake, capsys: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    run(layout, system, capsys, "issue", "shop")
    add_site(layout, "shop", **change)
    assert run(layout, system, capsys, "issue", "shop")[1] == ["shop"]
    assert "--force-renewal" in system.asked[1], "its age says nothing"
    assert system.shown["shop"] == b"shop 2"


@pytest.mark.parametrize(
    ("days", "left", "due"),
    [(90, 31, False), (90, 29, True), (45, 16, False), (45, 14, True), (6, 3.1, False), (6, 2.9, True), (90, -1, True)],
)
def test_a_share_of_its_life_decides_when_it_is_due(
    layout: acme.Layout, system: Fake, capsys: pytest.CaptureFixture[str], days: float, left: float, due: bool
) -> None:
    system.life = (NOW - (days - left) * DAY, NOW + left * DAY)
    run(layout, system, capsys, "issue", "shop")
    assert acme.is_due(system, layout.state / "live/shop/cert.pem", NOW) is due


def test_renewal_is_of_what_is_due_or_of_all(
    layout: acme.Layout, system: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    run(layout, system, capsys, "issue", "shop")
    assert run(layout, system, capsys, "renew") == (0, [], "")
    assert run(layout, system, capsys, "renew", "--now") == (0, ["shop"], "")
    system.life = (NOW - 89 * DAY, NOW + DAY)
    assert run(layout, system, capsys, "renew") == (0, ["shop"], "")
    assert system.shown["shop"] == b"shop 3"
    there = {path.name for path in (layout.sites / "shop").iterdir() if path.is_dir() and not path.is_symlink()}
    assert len(there) == 2, "the one that serves, and the one before"


def test_without_the_authority_the_last_one_serves_and_the_others_are_seen_to(
    layout: acme.Layout, system: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    run(layout, system, capsys, "issue", "shop")
    add_site(layout, "ask")
    system.is_down = True
    code, changed, said = run(layout, system, capsys, "renew", "--now")
    assert (code, changed) == (1, [])
    assert "ask: no certificate for shop.test, www.shop.test from https://ca.test/dir:\nConnection refused\n" in said
    assert "shop: no certificate for" in said
    assert system.shown["shop"] == b"shop 1"
    assert acme.is_asked(layout, acme.Site.read(layout, "shop"))


def test_what_nginx_refuses_goes_back(layout: acme.Layout, system: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    run(layout, system, capsys, "issue", "shop")
    before = (layout.sites / "shop/acme").readlink()
    system.refuses = "key values mismatch"
    code, changed, said = run(layout, system, capsys, "renew", "--now")
    assert (code, changed) == (1, [])
    assert "shop: Nginx refuses its new certificate:\nkey values mismatch\n" in said
    assert (layout.sites / "shop/acme").readlink() == before
    assert system.reloads == 1
    system.refuses = ""
    assert run(layout, system, capsys, "renew") == (0, ["shop"], ""), "by state, without asking once more"
    assert (len(system.asked), system.shown["shop"]) == (2, b"shop 2")


def test_a_reload_that_was_lost_is_done(layout: acme.Layout, system: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    run(layout, system, capsys, "issue", "shop")
    system.shown["shop"] = b"an older one"
    assert run(layout, system, capsys, "renew") == (0, ["shop"], "")
    assert system.shown["shop"] == b"shop 1"


def test_a_reload_that_nginx_does_not_do_is_told(
    layout: acme.Layout, system: Fake, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acme, "RELOAD_SECONDS", 0.0)
    system.is_deaf = True
    code, _, said = run(layout, system, capsys, "issue", "shop")
    assert code == 1
    assert "shop: Nginx does not serve its new certificate" in said


def test_a_stopped_nginx_is_nothing_to_wait_for(
    layout: acme.Layout, system: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    system.is_running = False
    assert run(layout, system, capsys, "issue", "shop") == (0, ["shop"], "")
    assert run(layout, system, capsys, "renew") == (0, [], "")


def test_a_site_that_has_another_certificate_now_is_left_alone(
    layout: acme.Layout, system: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    run(layout, system, capsys, "issue", "shop")
    (layout.root / "etc/nginx/quintet/sites/shop.conf").write_text("listen 80;\n")
    assert run(layout, system, capsys, "renew", "--now") == (0, [], "")
    assert len(system.asked) == 1


def test_settings_that_cannot_be_read_say_so(
    layout: acme.Layout, system: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    (layout.sites / "shop/acme.json").write_text("{}")
    code, _, said = run(layout, system, capsys, "issue", "shop")
    assert code == 1
    assert f"shop: its settings in {layout.sites}/shop/acme.json can't be used" in said
    assert "Run the playbook" in said


def test_the_dates_are_openssls(tmp_path: Path) -> None:
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        "/dev/null",
        "-subj",
        "/CN=x",
        "-days",
        "90",
    ]
    subprocess.run([*command, "-out", str(tmp_path / "x.pem")], check=True, capture_output=True)
    begin, end = acme.Programs().dates(tmp_path / "x.pem")
    assert end - begin == 90 * DAY


@pytest.mark.parametrize("lost", [False, True])
def test_a_certificate_that_has_ended_or_is_gone_is_asked_for_again(
    layout: acme.Layout, system: Fake, capsys: pytest.CaptureFixture[str], lost: bool
) -> None:
    """As of a site that had none of ACME's for a while, and has again."""
    run(layout, system, capsys, "issue", "shop")
    system.life = (NOW - 90 * DAY, NOW + DAY)
    assert run(layout, system, capsys, "issue", "shop") == (0, [], ""), "what is only due is the timer's part"
    if lost:
        shutil.rmtree(layout.state / "live/shop")
    else:
        system.life = (NOW - 90 * DAY, NOW)
    assert run(layout, system, capsys, "issue", "shop") == (0, ["shop"], "")
    assert ("--force-renewal" in system.asked[1]) is not lost
    assert system.shown["shop"] == b"shop 2"


@pytest.mark.parametrize("command", [("issue", "shop"), ("renew",)])
def test_certbot_runs_once_at_a_time(
    layout: acme.Layout,
    system: Fake,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: Sequence[str],
) -> None:
    tries = []
    certbot = system.certbot

    def look_and_ask(arguments: Sequence[str], bundle: str) -> tuple[bool, str]:
        descriptor = os.open(layout.state, os.O_RDONLY)
        try:
            with pytest.raises(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            tries.append(arguments)
        finally:
            os.close(descriptor)
        return certbot(arguments, bundle)

    monkeypatch.setattr(system, "certbot", look_and_ask)
    run(layout, system, capsys, *command)
    assert len(tries) == 1
