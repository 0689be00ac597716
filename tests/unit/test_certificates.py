"""Certificates that a user provides: what is refused, and with which words."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.parsing.vault import VaultLib, VaultSecret
from ansible_collections.quintet.django.plugins.action.check_apps import certificate_problems
from ansible_collections.quintet.django.plugins.plugin_utils.certificates import covers, pair_problems, read_pem
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

NOW = datetime.datetime(2026, 11, 25, 12, tzinfo=datetime.UTC)
NAMES = ["shop.example.org", "www.shop.example.org"]


def pem_of(key: ec.EllipticCurvePrivateKey, passphrase: bytes | None = None) -> str:
    encryption = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption).decode()


def certificate_of(
    key: ec.EllipticCurvePrivateKey, *, names: list[str] = NAMES, begins: int = -1, ends: int = 30, common: str = "x"
) -> str:
    """Return a certificate in PEM; `begins` and `ends` in days from NOW."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + datetime.timedelta(days=begins))
        .not_valid_after(NOW + datetime.timedelta(days=ends))
    )
    if names:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([x509.DNSName(one) for one in names]), critical=False
        )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


KEY, OTHER = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
GOOD = certificate_of(KEY)


def said(certificate: str, key: str, names: list[str] = NAMES, directory: str | None = None) -> str:
    return "\n".join(pair_problems(certificate, key, names, "django_apps[0].nginx.", DataLoader(), directory, NOW))


def test_a_good_pair_has_no_problems() -> None:
    assert said(GOOD, pem_of(KEY)) == ""
    assert said(GOOD + certificate_of(OTHER), pem_of(KEY)) == ""


@pytest.mark.parametrize(
    ("certificate", "key", "words"),
    [
        ("", pem_of(KEY), "django_apps[0].nginx.tls_certificate: is empty, and tls is 'provided'. Give a text"),
        (GOOD, "", "django_apps[0].nginx.tls_key: is empty"),
        (
            "-----BEGIN CERTIFICATE-----\nx\n",
            pem_of(KEY),
            "tls_certificate: holds no certificate in PEM. Give the whole chain",
        ),
        (GOOD, "-----BEGIN PRIVATE KEY-----\nx\n", "tls_key: holds no key in PEM."),
        (GOOD, GOOD, "tls_key: holds no key in PEM."),
        (GOOD, pem_of(KEY, b"secret"), "tls_key: is encrypted, and Nginx asks nobody for a passphrase. Decrypt it"),
        (GOOD, pem_of(OTHER), "tls_key: belongs to none of the certificates in django_apps[0].nginx.tls_certificate."),
        (certificate_of(OTHER) + GOOD, pem_of(KEY), "tls_key: belongs to number 2 of the certificates in"),
        (
            certificate_of(KEY, names=["shop.example.org"]),
            pem_of(KEY),
            "tls_certificate: doesn't cover 'www.shop.example.org' (it is for shop.example.org).",
        ),
        (
            certificate_of(KEY, names=[], common=NAMES[0]),
            pem_of(KEY),
            "doesn't cover 'shop.example.org' (it is for no name)",
        ),
        (
            certificate_of(KEY, begins=-9, ends=-1),
            pem_of(KEY),
            "tls_certificate: ended at 2026-11-24 12:00 UTC. Get a new",
        ),
        (certificate_of(KEY, begins=1), pem_of(KEY), "tls_certificate: is good from 2026-11-26 12:00 UTC on only."),
        (
            "nowhere.pem",
            pem_of(KEY),
            "nowhere.pem is no text in PEM, and no file on the controller. A relative path starts at the inventory",
        ),
        ("/", pem_of(KEY), "tls_certificate: / is no text in PEM, and no file on the controller"),
        (GOOD, "a secret", "tls_key: what it says is no text in PEM, and no file on the controller."),
    ],
)
def test_what_nginx_or_a_browser_would_not_take_is_refused(certificate: str, key: str, words: str) -> None:
    found = said(certificate, key, directory="/nonexistent")
    assert words in found
    assert "PRIVATE KEY" not in found
    assert "secret" not in found


@pytest.mark.parametrize(
    ("pattern", "name", "result"),
    [
        ("shop.example.org", "SHOP.example.org", True),
        ("*.example.org", "shop.example.org", True),
        ("*.example.org", "a.shop.example.org", False),
        ("*.example.org", "example.org", False),
        ("*.example.org", "*.example.org", True),
        ("shop.example.org", "*.example.org", False),
        ("*.shop.example.org", "*.example.org", False),
        ("192.0.2.7", "192.0.2.7", True),
        ("2001:db8::7", "[2001:DB8:0::7]", True),
        ("*.0.2.7", "192.0.2.7", False),
    ],
)
def test_an_asterisk_stands_for_one_label(pattern: str, name: str, result: bool) -> None:
    assert covers(pattern, name) is result


def test_texts_and_files_are_both_read(tmp_path: Path) -> None:
    (tmp_path / "shop.pem").write_text(GOOD)
    assert read_pem("shop.pem", DataLoader(), str(tmp_path)) == GOOD
    assert read_pem(str(tmp_path / "shop.pem"), DataLoader(), "/") == GOOD
    assert read_pem(f"\n  {GOOD}\n\n", DataLoader(), None) == GOOD


def test_a_path_begins_where_the_inventorys_link_leads(tmp_path: Path) -> None:
    """As `-i prod` does."""
    (tmp_path / "inventories/prod").mkdir(parents=True)
    (tmp_path / "tls").mkdir()
    (tmp_path / "tls/shop.pem").write_text(GOOD)
    (tmp_path / "prod").symlink_to("inventories/prod")
    assert read_pem("../../tls/shop.pem", DataLoader(), str(tmp_path / "prod")) == GOOD


def test_a_key_may_be_a_file_that_vault_has_encrypted(tmp_path: Path) -> None:
    secret = VaultSecret(b"a password")
    (tmp_path / "shop.key").write_bytes(VaultLib().encrypt(pem_of(KEY), secret=secret))
    locked = said(GOOD, "shop.key", directory=str(tmp_path))
    assert "django_apps[0].nginx.tls_key: can't be read (Ansible" in locked
    assert "Check the file's permissions and the Vault password." in locked
    loader = DataLoader()
    loader.set_vault_secrets([("default", secret)])
    assert pair_problems(GOOD, "shop.key", NAMES, "", loader, str(tmp_path), NOW) == []


def test_apps_are_checked_with_their_domains_and_aliases_before_any_host_is_touched() -> None:
    nginx: dict[str, Any] = {"tls_certificate": GOOD, "tls_key": pem_of(KEY)}
    app = {"tls": "provided", "domains": NAMES, "aliases": ["old.example.org"], "nginx": nginx}
    found = "\n".join(certificate_problems([{**app, "tls": "off"}, app], ["a", "django_apps[1]"], DataLoader(), None))
    assert "django_apps[1].nginx.tls_certificate: doesn't cover 'old.example.org'" in found
    assert "a.nginx" not in found
    assert "www" not in found.replace("for shop.example.org, www", "")


@pytest.mark.parametrize(
    ("bundle", "error"),
    [("", ""), (GOOD, ""), ("nowhere.pem", "FileNotFoundError"), ("-----BEGIN CERTIFICATE-----\nx\n", "ValueError")],
)
def test_who_has_signed_an_authoritys_directory_must_be_readable(bundle: str, error: str) -> None:
    """Before any host is touched; the role alone asks in its site_validate.yml."""
    nginx: dict[str, Any] = {"tls_acme_bundle": bundle}
    apps = [{"tls": tls, "domains": NAMES, "aliases": [], "nginx": nginx} for tls in ("off", "acme")]
    found = certificate_problems(apps, ["django_apps[0]", "django_apps[1]"], DataLoader(), "/nonexistent")
    start = f"django_apps[1].nginx.tls_acme_bundle: no certificate can be read from it ({error}). Give a text in PEM"
    assert [problem.startswith(start) for problem in found] == ([True] if error else [])
