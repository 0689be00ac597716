# Copyright (c) 2026 The Quintet authors
# MIT License (see LICENSE)
"""Certificates and keys that a user provides: where their text comes from, and what is wrong with them."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

PEM = "-----BEGIN "


def read_pem(value: str, loader: Any, directory: str | None) -> str:
    """Return a text in PEM: the value itself, or the content of the file that it names, decrypted by Ansible Vault if need be.

    A relative path starts at `directory`. Raises OSError or AnsibleError when the file can't be read.
    """
    text = str(value)
    if text.strip() and PEM not in text:
        # Ansible would take /../ literally, and the inventory's folder may be a link.
        path = (Path(directory or ".") / Path(text).expanduser()).resolve()
        if not path.is_file():
            raise FileNotFoundError(path)
        text = loader.get_text_file_contents(str(path))
    return text.strip() + "\n"


def pair_problems(
    certificate: str, key: str, names: Sequence[str], label: str, loader: Any, directory: str | None, now: datetime
) -> list[str]:
    """Say what is wrong with a certificate and its key, each as text or as a file, for a site of those names.

    `label` stands before tls_certificate and tls_key in messages; `now` has a time zone.
    """
    texts, found = {}, []
    for option, value in (("tls_certificate", certificate), ("tls_key", key)):
        place = f"{label}{option}"
        if not str(value).strip():
            found.append(
                f"{place}: is empty, and tls is 'provided'. Give a text in PEM, or the path of a file with it."
            )
            continue
        try:
            texts[option] = read_pem(value, loader, directory)
        except FileNotFoundError as error:
            # What stands where a key belongs may be a secret: one without its first line, say.
            what = "what it says" if option == "tls_key" else str(error)
            found.append(
                f"{place}: {what} is no text in PEM, and no file on the controller. A relative path starts at the inventory's folder."
            )
        except (OSError, AnsibleError) as error:
            found.append(
                f"{place}: can't be read ({type(error).__name__}). Check the file's permissions and the Vault password."
            )
    return found or text_problems(texts["tls_certificate"], texts["tls_key"], names, label, now)


def bundle_problems(bundle: str, label: str, loader: Any, directory: str | None) -> list[str]:
    """Say what is wrong with the certificates of those who have signed an authority's directory, as text or as a file; none is fine."""
    if not bundle:
        return []
    try:
        x509.load_pem_x509_certificates(read_pem(bundle, loader, directory).encode())
    except (OSError, ValueError, AnsibleError) as error:
        return [
            f"{label}tls_acme_bundle: no certificate can be read from it ({type(error).__name__}). Give a text in PEM, or the path of a "
            "file with it on the controller; a relative one starts at the inventory's folder."
        ]
    return []


def text_problems(certificate: str, key: str, names: Sequence[str], label: str, now: datetime) -> list[str]:
    """Say what is wrong with a certificate's chain and its key in PEM; nothing of the key is in a message."""
    where, key_where = f"{label}tls_certificate", f"{label}tls_key"
    try:
        chain = x509.load_pem_x509_certificates(certificate.encode())
    except ValueError:
        return [f"{where}: holds no certificate in PEM. Give the whole chain, the site's own certificate first."]
    try:
        private = serialization.load_pem_private_key(key.encode(), password=None)
    except TypeError:
        return [
            f"{key_where}: is encrypted, and Nginx asks nobody for a passphrase. Decrypt it, and keep it in Ansible Vault."
        ]
    except (ValueError, UnsupportedAlgorithm):
        return [f"{key_where}: holds no key in PEM. Give the one that belongs to {where}."]
    leaf, found = chain[0], []
    owner = owner_of(private.public_key(), chain)
    if owner is None:
        found.append(f"{key_where}: belongs to none of the certificates in {where}. Give the key of the first one.")
    elif owner > 0:
        found.append(f"{key_where}: belongs to number {owner + 1} of the certificates in {where}. Put that one first.")
    covered = covered_names(leaf)
    found += [
        f"{where}: doesn't cover '{name}' (it is for {', '.join(covered) or 'no name'}). "
        "Get one for all domains and aliases, or take the name from the site."
        for name in names
        if not any(covers(pattern, name) for pattern in covered)
    ]
    if now < leaf.not_valid_before_utc:
        found.append(
            f"{where}: is good from {leaf.not_valid_before_utc:%Y-%m-%d %H:%M} UTC on only. Wait, or look at the clock."
        )
    if now >= leaf.not_valid_after_utc:
        found.append(f"{where}: ended at {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC. Get a new one.")
    return found


def owner_of(public: Any, chain: Sequence[x509.Certificate]) -> int | None:
    """Return which certificate of a chain has that public key, None if none has."""
    wanted = public_bytes(public)
    return next((number for number, one in enumerate(chain) if public_bytes(one.public_key()) == wanted), None)


def public_bytes(public: Any) -> bytes:
    """Return a public key in the form in which equal ones are equal."""
    encoded: bytes = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return encoded


def covered_names(certificate: x509.Certificate) -> list[str]:
    """Return the host names and addresses that a certificate is for; browsers read no others."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [
        *(name.lower() for name in names.get_values_for_type(x509.DNSName)),
        *(str(address) for address in names.get_values_for_type(x509.IPAddress)),
    ]


def covers(pattern: str, name: str) -> bool:
    """Say whether a name of a certificate stands for a site's name; an asterisk is one label (RFC 9525, 6.3)."""
    wanted = name.lower()
    try:
        wanted = str(ipaddress.ip_address(wanted.strip("[]")))
    except ValueError:
        if pattern.startswith("*."):
            return wanted.partition(".")[2] == pattern[2:]
    return wanted == pattern
