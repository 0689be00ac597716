"""Certificates by ACME from a real authority for tests, Debian's Pebble (Molecule scenario acme)."""

from __future__ import annotations

import http.client
import json
import os
import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hosts import Host, Played, Site, play, play_well, wait_for
from secure import SecureSite, visited

HOST = Host(os.environ.get("ACME_HOST", "quintet-acme"))
STATE = "/var/lib/quintet-edge/acme"
TLS = "/etc/nginx/quintet-tls"
SERVICE = "quintet-acme.service"
PLAYBOOK = "molecule/acme/converge.yml"


@pytest.fixture(scope="module")
def root() -> str:
    """The certificate of Pebble's authority, which is another one after each start."""
    return HOST.run("curl", "--silent", "--insecure", "https://127.0.0.1:15000/roots/0")


@pytest.fixture
def shop(root: str) -> SecureSite:
    return SecureSite(HOST, "shop.test", authority=root)


@pytest.fixture
def both(root: str) -> SecureSite:
    """The site that is served over plain HTTP as well."""
    return SecureSite(HOST, "both.test", authority=root)


def converge(*arguments: str) -> Played:
    return play_well(PLAYBOOK, *arguments)


@contextmanager
def renewed_whatever_the_age() -> Iterator[None]:
    """Let the timer's service renew all, as an administrator would with --now."""
    directory = f"/run/systemd/system/{SERVICE}.d"
    lines = "[Service]\nExecStart=\nExecStart=/usr/bin/python3 -B /usr/local/lib/quintet-edge/acme.py renew --now\n"
    HOST.run("mkdir", "-p", directory)
    HOST.run("sh", "-c", f"cat > {directory}/now.conf && systemctl daemon-reload", stdin=lines)
    try:
        yield
    finally:
        HOST.run(
            "sh", "-c", f"rm -r {directory} && systemctl daemon-reload && systemctl reset-failed {SERVICE} || true"
        )


def orders() -> int:
    """How many orders Pebble has had."""
    return HOST.run("journalctl", "--unit=pebble.service", "--output=cat", "--no-pager").count("There are now")


def certificates(site: str) -> set[str]:
    return set(
        HOST.run("find", f"{TLS}/{site}", "-mindepth", "1", "-maxdepth", "1", "-type", "d", "-printf", "%f\n").split()
    )


def forget_both() -> None:
    """Leave a site as one that never had a certificate."""
    converge("-e", "sites_tls=off")
    HOST.run(
        "sh",
        "-euc",
        f"rm -r {STATE}/live/both {STATE}/archive/both {STATE}/renewal/both.conf {STATE}/both.asked {TLS}/both",
    )


def test_the_authority_has_signed_for_all_names(shop: SecureSite, both: SecureSite) -> None:
    for site in (shop, both):
        assert (site.get("/shown").status, site.get("/shown").body) == (200, "shown")
        alias = SecureSite(HOST, f"www.{site.domain}", authority=site.authority).get("/shown")
        assert (alias.status, alias.headers["location"]) == (308, f"https://{site.domain}/shown")
    assert Site(HOST, "shop.test").get("/shown").status == 308
    assert Site(HOST, "both.test").get("/shown").body == "shown"


def test_its_questions_find_their_answers_by_plain_http_and_nothing_else_does() -> None:
    directory = "/var/lib/quintet-edge/challenges/.well-known/acme-challenge"
    HOST.run(
        "sh", "-c", f"mkdir -p -m 755 {directory} && printf proof > {directory}/token && chmod 644 {directory}/token"
    )
    for domain in ("shop.test", "www.shop.test", "both.test"):
        assert Site(HOST, domain).get("/.well-known/acme-challenge/token").body == "proof"
        assert Site(HOST, domain).get("/.well-known/acme-challenge/none").status == 404
        assert Site(HOST, domain).get("/.well-known/acme-challenge/../../acme/live").status in (308, 502)
    HOST.run("touch", "/var/lib/quintet-edge/both.maintenance")
    try:
        assert Site(HOST, "both.test").get("/shown").status == 503
        assert Site(HOST, "both.test").get("/.well-known/acme-challenge/token").body == "proof"
    finally:
        HOST.run("rm", "/var/lib/quintet-edge/both.maintenance", f"{directory}/token")


def test_keys_are_for_root_alone() -> None:
    keys = HOST.run("find", STATE, TLS, "-name", "*.pem", "-path", "*key*", "-type", "f", "-printf", "%p\n").split()
    assert len(keys) >= 4
    assert all(HOST.fails("cat", key, user="www-data") for key in keys)


def test_a_second_run_changes_nothing_and_asks_for_nothing(shop: SecureSite) -> None:
    serial, asked = shop.serial, orders()
    assert not (again := converge()).changed, again.changed_tasks
    assert (shop.serial, orders()) == (serial, asked)
    HOST.run("systemctl", "start", SERVICE)
    assert (shop.serial, orders()) == (serial, asked), "a young certificate is not due"
    assert "quintet-acme.timer" in HOST.run("systemctl", "list-timers", "--no-pager")


def test_a_renewal_is_served_with_no_connection_dropped(shop: SecureSite, both: SecureSite) -> None:
    before = [site.serial for site in (shop, both)]
    with renewed_whatever_the_age(), visited(shop, both, path="/shown") as visits:
        HOST.run("systemctl", "start", SERVICE)
        after = [site.serial for site in (shop, both)]
        wait_for("the new ones to be seen", lambda: all(len(serials) == 2 for serials in visits.served.values()), 10)
    assert not set(before) & set(after)
    assert visits.failures == []
    assert visits.count > 20
    for site, *serials in zip((shop, both), before, after, strict=True):
        assert visits.served[(HOST.name, site.domain)] == serials, "the old one, then the new one"
    assert len(certificates("shop")) == 2, "the one before is kept, others are gone"


def test_what_an_earlier_run_left_undone_is_put_into_place(shop: SecureSite) -> None:
    """Killed after certbot was done, and again before Nginx was told."""
    new = HOST.run("readlink", f"{TLS}/shop/acme").strip()
    (old,) = certificates("shop") - {new}
    serial = shop.serial
    HOST.run(
        "sh", "-euc", f"ln -sfn {old} {TLS}/shop/.acme && mv -T {TLS}/shop/.acme {TLS}/shop/acme && nginx -s reload"
    )
    with visited(shop, path="/shown"):
        HOST.run("systemctl", "start", SERVICE)
    assert shop.serial == serial
    HOST.run("sh", "-euc", f"ln -sfn {old} {TLS}/shop/acme && systemctl restart nginx && ln -sfn {new} {TLS}/shop/acme")
    assert shop.serial != serial
    HOST.run("systemctl", "start", SERVICE)
    assert shop.serial == serial


def test_another_name_is_asked_for(shop: SecureSite) -> None:
    more = SecureSite(HOST, "more.shop.test", authority=shop.authority)
    with pytest.raises(ssl.SSLError):
        more.get("/shown")
    with visited(shop, path="/shown") as visits:
        converge("-e", '{"more_domains": ["more.shop.test"]}')
    assert visits.failures == []
    assert more.get("/shown").body == "shown"
    with shop.connected() as connection:
        found: Any = connection.getpeercert()
    assert sorted(name for _, name in found["subjectAltName"]) == ["more.shop.test", "shop.test", "www.shop.test"]


def test_the_first_certificate_comes_while_the_site_serves(both: SecureSite) -> None:
    """Port 80 stays open, and the site is there over HTTPS with a certificate of the host's own until then."""
    forget_both()
    statuses: set[int] = set()
    failures: list[Exception] = []
    stop = threading.Event()

    def visit() -> None:
        while not stop.wait(0.02):
            try:
                statuses.add(Site(HOST, "both.test").get("/shown").status)
            except (OSError, http.client.HTTPException) as error:
                failures.append(error)

    visitor = threading.Thread(target=visit)
    visitor.start()
    try:
        converge()
    finally:
        stop.set()
        visitor.join()
    assert (statuses, failures) == ({200}, [])
    assert both.get("/shown").body == "shown"


def test_without_its_first_certificate_a_site_serves_with_the_hosts_own(both: SecureSite) -> None:
    """The authority refuses, since one of the names leads nowhere; the run without that name asks again."""
    forget_both()
    own = SecureSite(HOST, "both.test", authority=HOST.run("cat", f"{TLS}/authority.pem"))
    astray = {"name": "both", "domains": ["both.test", "astray.test"], "aliases": [], "redirect": 0}
    refused = play(PLAYBOOK, "-e", json.dumps({"sites": [astray]}))
    assert refused.code != 0
    assert "no certificate for both.test, astray.test from https://localhost:14000/dir" in refused.text
    assert (own.get("/shown").status, own.get("/shown").body) == (200, "shown")
    assert Site(HOST, "both.test").get("/shown").body == "shown"
    with pytest.raises(ssl.SSLError):
        both.get("/shown")
    assert converge().changed
    assert both.get("/shown").body == "shown"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ('{"more_domains": ["*.shop.test"]}', "nginx_site_tls: '*.shop.test' can get no certificate by acme"),
        (
            '{"nginx_site_tls_acme_staging": true}',
            "nginx_site_tls_acme_staging: is true, and nginx_site_tls_acme_directory names",
        ),
    ],
)
def test_what_acme_cannot_do_is_refused(given: str, said: str) -> None:
    played = play(PLAYBOOK, "-e", given)
    assert played.code != 0
    assert said in played.text
    assert played.changed == 0


def test_without_the_authority_the_last_certificate_serves_and_the_failure_shows(shop: SecureSite) -> None:
    serial = shop.serial
    HOST.run("systemctl", "stop", "pebble.service")
    with renewed_whatever_the_age():
        assert HOST.fails("systemctl", "start", SERVICE)
        assert HOST.run("systemctl", "is-failed", SERVICE).strip() == "failed"
        told = HOST.run("journalctl", f"--unit={SERVICE}", "--lines=60", "--output=cat", "--no-pager")
    for site in ("shop", "both"):
        assert re.search(
            rf"^{site}: no certificate for {site}[.]test, .* from https://localhost:14000/dir:$", told, re.M
        ), told
    assert "What serves goes on serving." in told
    assert shop.serial == serial
    assert shop.get("/shown").body == "shown"
    assert not (again := converge()).changed, again.changed_tasks
    played = play(PLAYBOOK, "-e", '{"more_domains": ["more.shop.test"]}')
    assert played.code != 0
    assert "no certificate for shop.test, more.shop.test, www.shop.test from https://localhost:14000/dir" in played.text
    assert shop.get("/shown").body == "shown"


def test_until_an_authority_answers_a_site_serves_what_it_had() -> None:
    """As one with a certificate that browsers know, which must not be lost; the authority is still down."""
    converge("-e", "sites_tls=self_signed")
    HOST.run(
        "sh",
        "-euc",
        f"rm -rf {STATE}/live/both {STATE}/archive/both {STATE}/renewal/both.conf {STATE}/both.asked {TLS}/both/acme",
    )
    both = SecureSite(HOST, "both.test", authority=HOST.run("cat", f"{TLS}/authority.pem"))
    serial = both.serial
    played = play(PLAYBOOK)
    assert "no certificate for both.test, www.both.test from https://localhost:14000/dir" in played.text
    assert both.serial == serial
