"""The role authority: names, and when a certificate is made anew."""

from __future__ import annotations

import base64
import datetime
from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from rendering import Role, load

DAY = datetime.timedelta(days=1)
NAMES = {"inventory_hostname": "app1", "hostvars": {"app1": {"ansible_host": "10.0.0.11"}}}


def certificate(days: float, *names: str, common_name: str = "x") -> str:
    """Return a certificate that is good for so many days from now."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY)
        .not_valid_after(now + days * DAY)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def file(text: str) -> dict[str, Any]:
    return {"content": base64.b64encode(text.encode()).decode()}


def role(**given: Any) -> Role:
    return Role("authority", **{**NAMES, "ansible_play_hosts_all": ["db1", "app1"], **given})


def test_the_first_host_keeps_the_key_and_hosts_are_known_by_name_and_address() -> None:
    assert role().evaluate("authority_host") == "db1"
    assert role().evaluate("__authority_alternative_names") == ["DNS:app1", "IP:10.0.0.11"]
    # As in a task that is delegated to another host.
    assert role(ansible_host="10.0.0.99").evaluate("authority_names") == ["app1", "10.0.0.11"]


@pytest.mark.parametrize(
    ("name", "alternative"),
    [
        ("fd00::7", "IP:fd00::7"),
        ("shop.example.org", "DNS:shop.example.org"),
        ("10.example.org", "DNS:10.example.org"),
        ("beef", "DNS:beef"),
    ],
)
def test_addresses_and_names_are_told_apart(name: str, alternative: str) -> None:
    assert role(authority_names=[name]).evaluate("__authority_alternative_names") == [alternative]


AUTHORITY = certificate(7301)


@pytest.mark.parametrize(
    ("found", "good"),
    [
        (lambda: "", False),
        (lambda: AUTHORITY, True),
        # It would end before what it signs today.
        (lambda: certificate(3649), False),
    ],
    ids=["none", "good", "too short"],
)
def test_the_authority_outlives_what_it_signs(found: Callable[[], str], good: bool) -> None:
    authority = file(found()) if found() else {"failed": True, "msg": "file not found"}
    assert role(__authority_file=authority).evaluate("__authority_is_good") is good


@pytest.mark.parametrize(
    ("found", "good"),
    [
        (lambda: "", False),
        (lambda: certificate(3650, "app1", "10.0.0.11.example") + AUTHORITY, True),
        (lambda: certificate(3650, "10.0.0.11.example", "app1") + AUTHORITY, True),
        (lambda: certificate(3650, "app1") + AUTHORITY, False),
        (lambda: certificate(1200, "app1", "10.0.0.11.example") + AUTHORITY, False),
        (lambda: certificate(3650, "app1", "10.0.0.11.example") + certificate(7301), False),
        (lambda: certificate(3650, "app1", "10.0.0.11.example"), False),
    ],
    ids=["none", "good", "another order", "other names", "last third", "another authority", "cut off"],
)
def test_a_host_gets_another_certificate_when_it_needs_one(found: Callable[[], str], good: bool) -> None:
    given = role(
        authority_names=["app1", "10.0.0.11.example"],
        __authority_file=file(AUTHORITY),
        __authority_made={"skipped": True},
        __authority_host_file=file(found()),
    )
    assert given.evaluate("__authority_host_is_good") is good


@pytest.mark.parametrize(
    ("found", "good"),
    [
        (lambda: "", False),
        (lambda: certificate(3650, common_name="shop:owner") + AUTHORITY, True),
        (lambda: certificate(3650, common_name="chat:owner") + AUTHORITY, False),
        (lambda: certificate(1200, common_name="shop:owner") + AUTHORITY, False),
        (lambda: certificate(3650, common_name="shop:owner") + certificate(7301), False),
        (lambda: certificate(3650, common_name="shop:owner"), False),
    ],
    ids=["none", "good", "another name", "last third", "another authority", "cut off"],
)
def test_a_client_gets_another_certificate_when_it_needs_one(found: Callable[[], str], good: bool) -> None:
    given = role(
        authority_client_name="shop:owner",
        __authority_file=file(AUTHORITY),
        __authority_made={"skipped": True},
        __authority_client_file=file(found()),
    )
    assert given.evaluate("__authority_client_is_good") is good
    assert given.evaluate("authority_client_directory") == "/etc/quintet-authority/private/clients/shop:owner"


def test_a_client_is_no_server() -> None:
    tasks: Any = load(role().path / "tasks/client_sign.yml")
    (asks,) = (task for task in tasks if "community.crypto.openssl_csr_pipe" in task)
    options = asks["community.crypto.openssl_csr_pipe"]
    assert options["extended_key_usage"] == ["clientAuth"]
    assert options["use_common_name_for_san"] is False
    assert tasks[0]["quintet.django.write_files"]["directories"][-1]["mode"] == "0700"
