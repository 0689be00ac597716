"""Systemd hosts in containers, for the demo and for Molecule: their images, their start, their end.

    hosts.py image SUITE…                                  build what is missing of quintet-host:SUITE
    hosts.py up NAME --suite SUITE [--publish ADDRESS:PORT:PORT]… [--network NETWORK=SUBNET --address ADDRESS]
    hosts.py down NAME… [--network NETWORK=SUBNET]

This file is the one place that knows how such a host is built and started. Its recipe is a bare Debian: what a
fresh server has, and nothing that Quintet's roles must bring themselves. Of each suite there is a furnished one, too,
such as trixie-furnished: it has the packages that the roles and the tests ask for, as packaged but for their services, which are
disabled: so they don't run before a role starts them; and its Python keeps what it compiles for Ansible's tasks (archives.py).
It is for tests that need no bare host.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from console import CACHE, Failure, as_root, ask, install, main, run, say, which
from engine import ensure_engine

SUITES = ("bookworm", "trixie")
FURNISHED = "-furnished"
BOOT_SECONDS = 60
PULL_ANSWER_SECONDS = 15
PULL_SECONDS = 600
FURNISH_SECONDS = 600

PACKAGES = ("systemd", "systemd-sysv", "dbus", "python3", "ca-certificates", "iproute2")

# What the roles install, and what the tests reach a host and ask with; one that is missing here only costs time.
FURNITURE = (
    *("postgresql", "python3-psycopg2", "redis-server", "nginx", "ca-certificates", "gzip", "python3-venv", "tar"),
    *("postgresql-client", "python3-apt", "python3-cryptography", "openssl", "nftables"),
    *("openssh-server", "sudo", "curl", "slowhttptest", "wrk"),
)

# What a container's image has and a server has not: settings that keep apt from caching and services from starting;
# and the other way round: timers that would hold apt's lock in the middle of a test.
FINISH = (
    "rm -f /etc/apt/apt.conf.d/docker-* /usr/sbin/policy-rc.d"
    " && systemctl mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer"
    " && rm -rf /var/lib/apt/lists/* && : > /etc/machine-id"
)

# Systemd doesn't make / shared in a container, and without that LoadCredential= and PrivateUsers= fail silently.
# On cgroup v2 the engine mounts the host's own cgroup namespace read-only; systemd must write to it.
BOOT = (
    "mount --make-rshared /"
    " && if [ -e /sys/fs/cgroup/cgroup.controllers ]; then mount -o remount,rw /sys/fs/cgroup; fi"
    " && exec /lib/systemd/systemd"
)

# Only root may look into the directory, and it is for the system's Python, not for environments of apps.
ARCHIVES = Path(__file__).with_name("archives.py")
ARCHIVES_KEPT = "/var/cache/python-archives"

CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
LABEL = "org.quintet.host"


# In a container that is no host yet: nothing starts, and the lists of packages stay, so that apt needs no new ones.
# Its argument is the text of archives.py.
FURNISH = (
    "printf '#!/bin/sh\\nexit 101\\n' > /usr/sbin/policy-rc.d && chmod 755 /usr/sbin/policy-rc.d && apt-get update"
    f" && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends {' '.join(FURNITURE)}"
    # Keys of an image would be those of all its hosts: who starts OpenSSH makes the host's own.
    " && systemctl disable nginx postgresql redis-server ssh && rm -f /etc/ssh/ssh_host_*"
    f" && install -d -m 0700 {ARCHIVES_KEPT} && cd /usr/lib/python3/dist-packages && printf '%s' \"$1\" > quintet_archives.py"
    f" && echo 'import quintet_archives; quintet_archives.keep(\"{ARCHIVES_KEPT}\")' > quintet_archives.pth"
    " && apt-get clean && rm /usr/sbin/policy-rc.d && : > /etc/machine-id"
)


def recipe(suite: str) -> str:
    """Return a digest of what the image is made of: another recipe means another image."""
    parts = [suite, PACKAGES, FINISH, BOOT]
    if suite.endswith(FURNISHED):
        parts += [FURNISH, ARCHIVES.read_text()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def image_name(suite: str) -> str:
    """Return the image's name; raises `Failure` for a system that Quintet doesn't know."""
    if suite.removesuffix(FURNISHED) not in SUITES:
        raise Failure(f"There is no test host of suite '{suite}'.", f"Choose one of: {', '.join(SUITES)}")
    return f"quintet-host:{suite}"


def ensure_image(suite: str) -> str:
    """Return the name of the suite's image, after making it when it is missing or its recipe has changed."""
    name = image_name(suite)
    with alone():
        ensure_engine()
        make_image(name, suite)
    return name


def make_image(name: str, suite: str) -> None:
    """Make the suite's image when it is missing or its recipe has changed, and before it the bare one it stands on."""
    if inspect("image", name, f'{{{{index .Config.Labels "{LABEL}"}}}}') == recipe(suite):
        return
    if suite.endswith(FURNISHED):
        bare = suite.removesuffix(FURNISHED)
        make_image(image_name(bare), bare)
        furnish(name, suite, image_name(bare))
    elif pull(f"debian:{suite}"):
        build(name, suite)
    else:
        say("No registry of images gives it")
        bootstrap(name, suite)


@contextmanager
def alone() -> Iterator[None]:
    """Keep a second run from starting the engine or building an image at the same time."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "hosts.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Waiting for another run that prepares engine and images")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def pull(image: str) -> bool:
    """Get an image from its registry, and tell whether it is here; a registry that is silent is given up soon."""
    if inspect("image", image, "{{.Id}}"):
        return True
    say(f"Pulling {image} (without an answer in {PULL_ANSWER_SECONDS} s it is built from Debian's packages)")
    answered = threading.Event()
    process = subprocess.Popen(["docker", "pull", image], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def show() -> None:
        for line in process.stdout or ():
            print(f"    {line}", end="", flush=True)
            answered.set()

    reader = threading.Thread(target=show, daemon=True)
    reader.start()
    answered.wait(PULL_ANSWER_SECONDS)
    if not answered.is_set():
        process.kill()
    try:
        return process.wait(PULL_SECONDS) == 0
    except subprocess.TimeoutExpired:
        process.kill()
        return False
    finally:
        reader.join(1)


def build(name: str, suite: str) -> None:
    """Make the image from the registry's Debian image."""
    say(f"Building {name} from debian:{suite}")
    dockerfile = "\n".join(
        [
            f"FROM debian:{suite}",
            "RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "
            + f"{' '.join(PACKAGES)} && apt-get clean && {FINISH}",
            f"LABEL {LABEL}={recipe(suite)}",
            f"CMD {json.dumps(['sh', '-c', BOOT])}",
        ]
    )
    reply = subprocess.run(["docker", "build", "--tag", name, "-"], check=False, input=dockerfile, text=True)
    if reply.returncode != 0:
        raise Failure(f"{name} can't be built.", "Read the output above, mend the cause, then start again.")


def bootstrap(name: str, suite: str) -> None:
    """Make the image from Debian's packages, without any registry of images (about 20 s)."""
    purpose = f"build {name} from Debian's packages"
    if which("mmdebstrap") is None:
        install(["mmdebstrap"], purpose)
    say(f"Building {name} from Debian's packages")
    archive = CACHE / f"{suite}.tar"
    mirror, security = "http://deb.debian.org/debian", "http://deb.debian.org/debian-security"
    sources = [f"deb {mirror} {suite} main", f"deb {mirror} {suite}-updates main"]
    sources.append(f"deb {security} {suite}-security main")
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
    # Last of all hooks, so the empty machine-id stays: each host makes its own at its first start.
    command += [f"--customize-hook=chroot \"$1\" sh -c '{FINISH}'", suite, str(archive), *sources]
    try:
        run(as_root(command, purpose), "Check that this machine reaches deb.debian.org, then start again.")
        changes = [f"CMD {json.dumps(['sh', '-c', BOOT])}", f"LABEL {LABEL}={recipe(suite)}"]
        arguments = [part for change in changes for part in ("--change", change)]
        run(["docker", "import", *arguments, str(archive), name], "See the messages of the Docker engine.")
    finally:
        ask(as_root(["rm", "-f", str(archive)], purpose))


def furnish(name: str, suite: str, bare: str) -> None:
    """Make the furnished image from the bare one (about 15 s)."""
    say(f"Building {name} from {bare}")
    container = name.replace(":", "-")
    remove = ["docker", "rm", "--force", container]
    ask(remove)
    try:
        arguments = ["run", "--name", container, "--label", f"{LABEL}={suite}", *trust(), bare]
        arguments += ["sh", "-c", FURNISH, "sh", ARCHIVES.read_text()]
        docker(arguments, f"{name} can't be built", FURNISH_SECONDS)
        changes = [f"CMD {json.dumps(['sh', '-c', BOOT])}", f"LABEL {LABEL}={recipe(suite)}"]
        docker(
            ["commit", *(part for change in changes for part in ("--change", change)), container, name],
            f"{name} can't be kept",
        )
    finally:
        ask(remove)


def trust() -> list[str]:
    """Return the arguments of `docker run` for a network whose TLS a local authority signs: the host must know it, too."""
    return ["--volume", f"{CA_BUNDLE}:{CA_BUNDLE}:ro"] if CA_BUNDLE.exists() else []


def run_arguments(cgroups: int) -> list[str]:
    """Return the arguments of `docker run` for a host, given the version of the machine's cgroups, 1 or 2.

    Version 2 is not among the machines where the tests have run so far.
    """
    arguments = [
        # What systemd and its sandboxes need; --privileged would hand over the machine, and fails on some.
        # SYS_PTRACE: without it PrivateUsers= fails beside ProtectProc=invisible, since PID 1 may not see its own child.
        # NET_ADMIN: a firewall of the host's own, in its own network namespace.
        *("--cap-add", "SYS_ADMIN", "--cap-add", "SYS_PTRACE", "--cap-add", "NET_ADMIN"),
        *("--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined"),
        *("--tmpfs", "/run", "--tmpfs", "/run/lock", "--tmpfs", "/tmp:exec"),  # noqa: S108  (the host's own)
        *("--stop-signal", "RTMIN+3"),
        # The engine lets everybody bind every port; a server keeps those below 1024 to root.
        *("--sysctl", "net.ipv4.ip_unprivileged_port_start=1024"),
    ]
    if cgroups == 1:
        arguments += ["--cgroupns", "host", "--volume", "/sys/fs/cgroup:/sys/fs/cgroup:rw"]
    else:
        arguments += ["--cgroupns", "private"]
    return arguments + trust()


def up(name: str, suite: str, publish: Sequence[str] = (), network: str = "", address: str = "") -> None:
    """Start the host `name` unless it runs, and wait until it has booted.

    `network` is a network's name and subnet, as cluster=172.31.77.0/24, in which the host gets `address` and keeps it over restarts; none:
    the engine's own. Raises `Failure` when a host of that name is of another suite, publishes other ports or has another address.
    """
    image = ensure_image(suite)
    wanted = " ".join([suite, *publish, *([network, address] if network else [])])
    present = inspect("container", name, f'{{{{.State.Running}}}} {{{{index .Config.Labels "{LABEL}"}}}}')
    if not present:
        say(f"Starting host {name} ({suite})")
        ports = [part for port in publish for part in ("--publish", port)]
        identity = ["--name", name, "--hostname", name, "--label", f"{LABEL}={wanted}"]
        version = inspect_engine("{{.CgroupVersion}}")
        arguments = run_arguments(2 if version == "2" else 1)
        if network:
            arguments += ["--network", ensure_network(network), "--ip", address]
        docker(["run", "--detach", *identity, *arguments, *ports, image], f"Host {name} can't be started")
    else:
        running, _, has = present.partition(" ")
        if has != wanted:
            raise Failure(
                f"There is a container '{name}' of another kind ({has or 'not made by this checkout'}; wanted: {wanted}).",
                f"Remove it, then start again: docker rm --force --volumes {name}",
            )
        if running != "true":
            say(f"Starting host {name} again")
            docker(["start", name], f"Host {name} can't be started")
    wait_for_boot(name)
    configure_downloads(name)


def ensure_network(network: str) -> str:
    """Return the name of a network, given with its subnet, after making it when it is missing."""
    name, _, subnet = network.partition("=")
    with alone():
        found = inspect("network", name, "{{range .IPAM.Config}}{{.Subnet}}{{end}}")
        if found and found != subnet:
            raise Failure(
                f"There is a network '{name}' with another subnet ({found}; wanted: {subnet}).",
                f"Remove it, then start again: docker network rm {name}",
            )
        if not found:
            docker(["network", "create", "--subnet", subnet, name], f"Network {name} can't be made")
    return name


def down(names: Sequence[str], network: str = "") -> None:
    """Remove hosts with their volumes, and their network; what doesn't exist is nothing to do."""
    if answer_is_missing():
        say("No Docker engine runs, so no host does")
        return
    for name in names:
        if inspect("container", name, "{{.Id}}"):
            docker(["rm", "--force", "--volumes", name], f"Host {name} can't be removed")
            say(f"Removed host {name}")
        else:
            say(f"There is no host {name}")
    if network and inspect("network", network.partition("=")[0], "{{.Id}}"):
        docker(["network", "rm", network.partition("=")[0]], "The hosts' network can't be removed")


def wait_for_boot(name: str) -> None:
    """Wait until the host's systemd has started everything, at most `BOOT_SECONDS`."""
    say(f"Waiting for {name} to boot, at most {BOOT_SECONDS} s")
    deadline = time.monotonic() + BOOT_SECONDS
    while True:
        state = ask(["docker", "exec", name, "systemctl", "is-system-running"]).stdout.strip()
        if state == "running":
            return
        if state == "degraded" or time.monotonic() > deadline:
            break
        time.sleep(0.3)
    failed = ask(["docker", "exec", name, "systemctl", "list-units", "--failed", "--plain", "--no-legend"]).stdout
    logs = ask(["docker", "logs", "--tail", "10", name])
    if state == "degraded":
        # A host whose own service fails is still a host; what that means is for the play or the test to say.
        say(f"{name} has booted, with failed units:\n{failed.rstrip()}")
        return
    raise Failure(
        f"Host {name} doesn't boot (state: {state or 'no systemd'}).\n{logs.stdout}{logs.stderr}".rstrip(),
        f"Look at it: docker logs {name}; remove it: docker rm --force --volumes {name}",
    )


def configure_downloads(name: str) -> None:
    """Give the host the machine's own way to Python packages, as its administrator would: in files below /etc."""
    index = os.environ.get("UV_DEFAULT_INDEX") or os.environ.get("PIP_INDEX_URL")
    pip, uv = ["[global]"], []
    if CA_BUNDLE.exists():
        pip.append(f"cert = {CA_BUNDLE}")
        uv.append("system-certs = true")
    if index:
        pip.append(f"index-url = {index}")
        uv += ["[[index]]", f"url = {json.dumps(index)}", "default = true"]
    script = 'mkdir -p /etc/uv && printf "%s\\n" "$1" > /etc/pip.conf && printf "%s\\n" "$2" > /etc/uv/uv.toml'
    arguments = ["exec", name, "sh", "-c", script, "sh", "\n".join(pip), "\n".join(uv)]
    docker(arguments, f"Host {name} can't be configured")


def inspect(kind: str, name: str, template: str) -> str:
    """Return what the engine says of an image or a container, as a Go template asks; empty when there is none."""
    return ask(["docker", kind, "inspect", "--format", template, name]).stdout.strip()


def inspect_engine(template: str) -> str:
    """Return what the engine says of itself, as a Go template asks."""
    return ask(["docker", "info", "--format", template]).stdout.strip()


def answer_is_missing() -> bool:
    """Tell whether no engine answers."""
    return which("docker") is None or ask(["docker", "version"]).returncode != 0


def docker(arguments: Sequence[str], wrong: str, seconds: float = 120) -> None:
    """Run a docker command in silence, at most so long; raises `Failure` with what it said."""
    reply = ask(["docker", *arguments], timeout=seconds)
    if reply.returncode != 0:
        raise Failure(f"{wrong}: {reply.stderr.strip()}", "Mend what the Docker engine names, then start again.")


def command_line() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description="Systemd hosts in containers, for the demo and the tests.")
    commands = parser.add_subparsers(dest="command", required=True)
    images = commands.add_parser("image", help="build what is missing of the hosts' images")
    images.add_argument("suite", nargs="+")
    start = commands.add_parser("up", help="start a host")
    start.add_argument("name")
    start.add_argument("--suite", required=True)
    start.add_argument("--publish", action="append", default=[], metavar="ADDRESS:PORT:PORT")
    start.add_argument("--network", default="", metavar="NETWORK=SUBNET")
    start.add_argument("--address", default="")
    stop = commands.add_parser("down", help="remove hosts")
    stop.add_argument("name", nargs="+")
    stop.add_argument("--network", default="", metavar="NETWORK=SUBNET")
    options = parser.parse_args()
    if options.command == "image":
        for suite in options.suite:
            ensure_image(suite)
    elif options.command == "up":
        up(options.name, options.suite, options.publish, options.network, options.address)
    else:
        down(options.name, options.network)


if __name__ == "__main__":
    main(command_line)
