"""An authority for the tests of TLS, and certificates by it, as a user would provide them.

authority.py DIRECTORY
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

NAMES = ("shop.test", "www.shop.test")
USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)
DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Authority:
    """An authority's key and certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def new(cls) -> Authority:
        """Make one, good for a year."""
        key, name = ec.generate_private_key(ec.SECP256R1()), named("Authority of the tests")
        builder = begun(name, name, key, -1, 365)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        usage = {name: name in ("key_cert_sign", "crl_sign") for name in USAGES}
        builder = builder.add_extension(x509.KeyUsage(**usage), critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        return cls(key, builder.sign(key, hashes.SHA256()))

    def issue(self, directory: Path, name: str, names: Sequence[str] = NAMES, begins: int = -1, ends: int = 60) -> int:
        """Write NAME.pem and NAME.key for host names; `begins` and `ends` in days from now. Returns the serial number."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = begun(named(name), self.certificate.subject, key, begins, ends)
        builder = builder.add_extension(
            x509.SubjectAlternativeName([x509.DNSName(one) for one in names]), critical=False
        )
        builder = builder.add_extension(
            x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = builder.add_extension(authority, critical=False)
        certificate = builder.sign(self.key, hashes.SHA256())
        (directory / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (directory / f"{name}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return certificate.serial_number


def named(text: str) -> x509.Name:
    """Return a subject."""
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, begins: int, ends: int
) -> x509.CertificateBuilder:
    """Return what all certificates have in common."""
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins * DAY)
        .not_valid_after(now + ends * DAY)
    )


def make(directory: Path) -> None:
    """Make the authority, what is provided at first and later on, and what must be refused."""
    directory.mkdir(parents=True, exist_ok=True)
    authority = Authority.new()
    (directory / "authority.pem").write_bytes(authority.certificate.public_bytes(serialization.Encoding.PEM))
    authority.issue(directory, "first")
    authority.issue(directory, "expired", begins=-60, ends=-1)
    authority.issue(directory, "future", begins=1)
    authority.issue(directory, "narrow", names=["shop.test"])
    authority.issue(directory, "pebble", names=["localhost"])
    authority.issue(directory, "second")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
