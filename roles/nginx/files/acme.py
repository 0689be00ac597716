"""Certificates by ACME on an edge: ask for them, put them where Nginx reads them, renew them. By role quintet.django.nginx.

    acme.py issue SITE       a first certificate, or one for other names or of another authority, if one is needed
    acme.py renew [--now]    one for each site whose certificate is in its last third, with --now for all

Each also puts into place what an earlier run left undone. All sites are seen to before a failure ends it with code 1.
Asking is certbot's part; it keeps what it needs below /var/lib/quintet-edge/acme, apart from certificates of others.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

RELOAD_SECONDS = 20.0
CERTBOT_SECONDS = 600
DAY = 86400.0


class AcmeError(Exception):
    """What is wrong, where, and what to do."""


@dataclass(frozen=True)
class Layout:
    """Where things are; below another root in tests."""

    root: Path = Path("/")

    @property
    def sites(self) -> Path:
        """The directory of keys and certificates, with one a site in it."""
        return self.root / "etc/nginx/quintet-tls"

    @property
    def trees(self) -> Path:
        """Whose lock keeps out who else changes Nginx (module quintet.django.nginx_tree)."""
        return self.root / "etc/nginx/quintet-trees"

    @property
    def state(self) -> Path:
        """What certbot keeps, and for each site what it was last asked for."""
        return self.root / "var/lib/quintet-edge/acme"

    @property
    def challenges(self) -> Path:
        """Where certbot answers the authority's questions, and Nginx finds it."""
        return self.root / "var/lib/quintet-edge/challenges"

    @property
    def logs(self) -> Path:
        """Where certbot writes its log."""
        return self.root / "var/log/quintet-acme"


@dataclass(frozen=True)
class Site:
    """What SITE/acme.json says."""

    name: str
    names: Sequence[str]
    directory: str
    staging: bool
    email: str
    bundle: str
    port: int

    @classmethod
    def read(cls, layout: Layout, name: str) -> Site:
        """Read it; raises AcmeError."""
        path = layout.sites / name / "acme.json"
        try:
            return cls(name=name, **json.loads(path.read_text()))
        except (OSError, TypeError, ValueError) as error:
            raise AcmeError(
                f"{name}: its settings in {path} can't be used ({error!r}).\nRun the playbook that sets up the site: it writes that file."
            ) from error

    @property
    def asked(self) -> dict[str, Any]:
        """What makes a certificate another one."""
        return {"names": list(self.names), "directory": self.directory, "staging": self.staging}


class System(Protocol):
    """The programs of the host."""

    def certbot(self, arguments: Sequence[str], bundle: str) -> tuple[bool, str]:
        """Run certbot, which believes the authorities in `bundle` if it is given; return whether all went well and its output."""

    def dates(self, certificate: Path) -> tuple[float, float]:
        """Return when a certificate begins and ends, in seconds since 1970."""

    def test(self) -> tuple[bool, str]:
        """Test Nginx's configuration; return whether it is valid and what Nginx says."""

    def reload(self) -> bool:
        """Have Nginx read it again; False when none runs."""

    def served(self, site: Site) -> bytes | None:
        """Return the certificate that clients get, in DER; None when nobody answers."""


class Programs:
    """Debian's."""

    def certbot(self, arguments: Sequence[str], bundle: str) -> tuple[bool, str]:
        """Run certbot."""
        environment = {**os.environ, **({"REQUESTS_CA_BUNDLE": bundle} if bundle else {})}
        try:
            done = subprocess.run(
                ["certbot", *arguments],
                env=environment,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=CERTBOT_SECONDS,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return False, str(error)
        return done.returncode == 0, f"{done.stdout}{done.stderr}"

    def dates(self, certificate: Path) -> tuple[float, float]:
        """Ask openssl, since the standard library tells of no certificate but a peer's."""
        done = subprocess.run(
            ["openssl", "x509", "-in", str(certificate), "-noout", "-startdate", "-enddate"],
            capture_output=True,
            text=True,
            check=True,
        )
        begin, end = (line.partition("=")[2] for line in done.stdout.splitlines())
        return ssl.cert_time_to_seconds(begin), ssl.cert_time_to_seconds(end)

    def test(self) -> tuple[bool, str]:
        """Run nginx -t."""
        done = subprocess.run(["nginx", "-t"], capture_output=True, text=True, errors="replace", check=False)
        return done.returncode == 0, done.stderr

    def reload(self) -> bool:
        """Send SIGHUP to the master process."""
        try:
            os.kill(int(Path("/run/nginx.pid").read_text()), signal.SIGHUP)
        except (OSError, ValueError):
            return False
        return True

    def served(self, site: Site) -> bytes | None:
        """Ask on the loopback address; whose it is does not matter here."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        try:
            with (
                socket.create_connection(("127.0.0.1", site.port), timeout=5) as plain,
                context.wrap_socket(plain, server_hostname=site.names[0]) as connection,
            ):
                return connection.getpeercert(binary_form=True)
        except OSError:
            return None


def ask(layout: Layout, system: System, site: Site, *, again: bool) -> None:
    """Get a certificate for the site's names; `again` whatever the age of the last. Raises AcmeError, with the last one as it was."""
    arguments = ["certonly", "--non-interactive", "--agree-tos", "--webroot", "--webroot-path", str(layout.challenges)]
    arguments += [
        "--config-dir",
        str(layout.state),
        "--work-dir",
        str(layout.state / "work"),
        "--logs-dir",
        str(layout.logs),
    ]
    arguments += ["--cert-name", site.name, "--key-type", "ecdsa", "--renew-with-new-domains"]
    arguments += ["--force-renewal"] if again else ["--keep-until-expiring"]
    arguments += ["--email", site.email] if site.email else ["--register-unsafely-without-email"]
    arguments += ["--server", site.directory] if site.directory else ["--staging"] if site.staging else []
    arguments += [part for name in site.names for part in ("--domain", name)]
    done, output = system.certbot(arguments, site.bundle)
    if not done:
        lines = [line for line in output.splitlines() if line.strip() and "Saving debug log" not in line]
        raise AcmeError(
            f"{site.name}: no certificate for {', '.join(site.names)} from "
            f"{site.directory or ('the staging directory' if site.staging else 'the default directory')}:\n"
            + "\n".join(lines[-12:])
            + f"\nWhat serves goes on serving. Each name must lead to this host's port 80; {layout.logs}/letsencrypt.log has all of it."
        )
    record = layout.state / f"{site.name}.asked"
    write(record, json.dumps(site.asked))


def write(path: Path, content: str) -> None:
    """Put a file for root alone in place by one rename, on disk when this returns."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def is_asked(layout: Layout, site: Site) -> bool:
    """Say whether the last certificate is there, for these names, of this authority."""
    if not (layout.state / "live" / site.name / "cert.pem").is_file():
        return False
    try:
        return bool(json.loads((layout.state / f"{site.name}.asked").read_text()) == site.asked)
    except (OSError, ValueError):
        return False


def is_due(system: System, certificate: Path, now: float) -> bool:
    """Say whether a certificate is in its last third, or of one that lives for less than ten days in its second half.

    A share and no age, as certbot 4 does it, since certificates will live shorter and shorter.
    """
    begin, end = system.dates(certificate)
    life = end - begin
    return end - now < (life / 3 if life >= 10 * DAY else life / 2)


def publish(layout: Layout, system: System, site: Site) -> bool:
    """Let Nginx serve what certbot has; return whether anything was to do.

    The link `acme` names the certificate that Nginx reads. Raises AcmeError, with the last one in place and served, when Nginx does not
    take it.
    """
    live = layout.state / "live" / site.name
    chain, key = (live / "fullchain.pem").read_text(), (live / "privkey.pem").read_text()
    digest = hashlib.sha256(chain.encode()).hexdigest()[:16]
    directory, link = layout.sites / site.name / digest, layout.sites / site.name / "acme"
    directory.mkdir(mode=0o700, exist_ok=True)
    for path, content in ((directory / "key.pem", key), (directory / "certificate.pem", chain)):
        if not path.exists() or path.read_text() != content:
            write(path, content)
    wanted = ssl.PEM_cert_to_DER_cert(chain.partition("-----END CERTIFICATE-----\n")[0] + "-----END CERTIFICATE-----\n")
    before = link.readlink().name if link.is_symlink() else None
    if before == digest and system.served(site) in (None, wanted):
        # Where nobody answers, Nginx will read it when it starts.
        return False
    point(link, digest)
    valid, output = system.test()
    if not valid:
        if before is not None:
            point(link, before)
        raise AcmeError(
            f"{site.name}: Nginx refuses its new certificate:\n{output.strip()}\nThe last one is in its place again."
        )
    if system.reload():
        wait_until_served(system, site, wanted)
    prune(link.parent, keep={digest, before or digest})
    return True


def point(link: Path, target: str) -> None:
    """Make the link name the target, by one rename."""
    temporary = link.with_name(".acme")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)


def wait_until_served(system: System, site: Site, wanted: bytes) -> None:
    """Wait until clients get that certificate; raises AcmeError when they don't."""
    end = time.monotonic() + RELOAD_SECONDS
    while system.served(site) != wanted:
        if time.monotonic() > end:
            raise AcmeError(
                f"{site.name}: Nginx does not serve its new certificate {RELOAD_SECONDS:.0f} seconds after the reload.\n"
                "See /var/log/nginx/error.log; the next run reloads it again."
            )
        time.sleep(0.1)


def prune(directory: Path, keep: set[str]) -> None:
    """Remove a site's certificates but those, and but what other links name."""
    keep = keep | {path.readlink().name for path in directory.iterdir() if path.is_symlink()}
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink() and path.name not in keep:
            shutil.rmtree(path)


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Keep out who else locks that directory; the kernel opens the lock when this process ends."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def issue(layout: Layout, system: System, site: Site, *, now: float) -> bool:
    """See to it that the site has the certificate that its settings say; return whether anything was to do."""
    # One that has ended is that of a site which had no TLS, or another's certificate, for a while: nothing renewed it.
    asked = is_asked(layout, site) and system.dates(layout.state / "live" / site.name / "cert.pem")[1] > now
    if not asked:
        # A record of something else, or a certificate of a run that was killed: its age says nothing.
        ask(layout, system, site, again=(layout.state / "live" / site.name).is_dir())
    with alone(layout.trees):
        return publish(layout, system, site) or not asked


def renew(layout: Layout, system: System, site: Site, *, now: float, at_once: bool) -> bool:
    """Renew the site's certificate if it is due, `at_once` in any case; return whether anything was to do."""
    if not is_asked(layout, site):
        return issue(layout, system, site, now=now)
    due = at_once or is_due(system, layout.state / "live" / site.name / "cert.pem", now)
    if due:
        ask(layout, system, site, again=True)
    with alone(layout.trees):
        return publish(layout, system, site) or due


def every_site(layout: Layout) -> list[str]:
    """Return the names of the sites that Nginx serves with certificates by ACME; a site that had one once does not count."""
    return sorted(
        name
        for name in (path.parent.name for path in layout.sites.glob("*/acme.json"))
        if (site := layout.root / f"etc/nginx/quintet/sites/{name}.conf").exists()
        and f"/{name}/acme/" in site.read_text()
    )


def main(arguments: Sequence[str], layout: Layout, system: System) -> int:
    """Do what the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(description="Certificates by ACME on this edge.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("issue", help="get what a site's settings say, if it has something else").add_argument("site")
    commands.add_parser("renew", help="renew what is due").add_argument(
        "--now", action="store_true", help="whatever its age"
    )
    options = parser.parse_args(arguments)
    os.umask(0o077)
    names = [options.site] if options.command == "issue" else every_site(layout)
    changed, failed = [], False
    for name in names:
        try:
            # Certbot would refuse to run twice at once, as by the timer and by a playbook.
            with alone(layout.state):
                site = Site.read(layout, name)
                done = (
                    issue(layout, system, site, now=time.time())
                    if options.command == "issue"
                    else renew(layout, system, site, now=time.time(), at_once=options.now)
                )
            changed += [name] if done else []
        except (AcmeError, OSError, subprocess.SubprocessError) as error:
            print(str(error), file=sys.stderr)
            failed = True
    print(json.dumps({"changed": changed}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Layout(), Programs()))
