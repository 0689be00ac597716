"""What the tests of several hosts share: the hosts, the site through its edge, and somebody who asks it all the time."""

from __future__ import annotations

import collections
import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hosts import Host, Played, Site, play

HOSTS = {
    name: Host(f"quintet-cluster-{name}") for name in ("edge1", "app1", "app2", "app3", "db1", "redis1", "stranger")
}
# Those of the inventory; app3 is in none until a test adds it.
APPS = ("app1", "app2")
ADDRESSES = {
    "edge1": "172.31.77.10",
    "app1": "172.31.77.11",
    "app2": "172.31.77.12",
    "app3": "172.31.77.13",
    "db1": "172.31.77.21",
    "redis1": "172.31.77.31",
}
SITE = Site(HOSTS["edge1"], "chat.test")
FOLDER = Path(os.environ.get("MOLECULE_EPHEMERAL_DIRECTORY", "/nonexistent")) / "cluster"


def site(*arguments: str, playbook: str = "site.yml") -> Played:
    """Run a playbook over OpenSSH, as the administrator of the site."""
    return play(playbook, *arguments, inventory=FOLDER / "inventory")


def container(command: str, name: str) -> None:
    """Let the engine do something to a host: kill, stop, start."""
    subprocess.run(["docker", command, HOSTS[name].name], check=True, capture_output=True)


@dataclass(frozen=True)
class Told:
    """What one request got: who answered it by which generation, both empty where nobody did."""

    method: str
    status: int
    host: str
    generation: str

    @property
    def release(self) -> str:
        """What the generation was built of: the same on every host."""
        return self.generation.partition("-")[0]


@dataclass
class Asking:
    """Requests for the view that tells who answers, one after the other: a GET, then a POST, which no server may get twice."""

    told: list[Told] = field(default_factory=list)

    def last(self, number: int) -> Sequence[Told]:
        """Return what the last requests got."""
        return self.told[-number:]

    def hosts(self, number: int) -> set[str]:
        """Return who answered the last requests, by their names in the inventory."""
        return {one.host.removeprefix("quintet-cluster-") for one in self.last(number)}

    def failed(self) -> collections.Counter[tuple[str, int]]:
        """Return how many requests failed, by method and status."""
        return collections.Counter((one.method, one.status) for one in self.told if one.status != 200)


@contextmanager
def asking() -> Iterator[Asking]:
    """Ask all the time, meanwhile: some twenty times a second, so that most of the machine is left to what is tested."""
    asked, done = Asking(), threading.Event()

    def ask() -> None:
        while not done.wait(0.1):
            for method in ("GET", "POST"):
                answer = SITE.request(method, "/telling")
                told = answer.json if answer.status == 200 else {"host": "", "generation": ""}
                asked.told.append(Told(method, answer.status, told["host"], told["generation"]))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield asked
    finally:
        done.set()
        thread.join()


def asked(**headers: str) -> dict[str, str]:
    """Ask the edge who answers, and what Django is told of the client."""
    answer: dict[str, str] = SITE.get("/telling", headers=headers).json
    return answer


def gateway() -> str:
    """The address that this machine has in the hosts' network."""
    return "172.31.77.1"


def sockets_on(host: Host) -> int:
    """Return how many WebSockets Daphne has on a host."""
    listed = host.run("ss", "--unix", "--no-header", "--all", "state", "established")
    return sum("daphne.sock" in line for line in listed.splitlines())


def requests_on(host: Host) -> int:
    """Return how many requests, handshakes left out, the edge has sent to an app host whose Nginx writes each down: prepare.yml."""
    return int(host.run("grep", "--count", "--invert-match", "^/ws/", "/var/log/nginx/connections.log", check=False))


@contextmanager
def unplugged(name: str) -> Iterator[None]:
    """Take a host off the hosts' network meanwhile; it comes back under its address."""
    network = ("quintet-cluster", HOSTS[name].name)
    subprocess.run(["docker", "network", "disconnect", *network], check=True, capture_output=True)
    try:
        yield
    finally:
        connect = ["docker", "network", "connect", "--ip", ADDRESSES[name], *network]
        subprocess.run(connect, check=True, capture_output=True)


@contextmanager
def network_cut(name: str, *others: str) -> Iterator[None]:
    """Cut the network between a host and some others: whatever one sends to the other vanishes without a word."""
    # Each end drops what reaches it, so that no sender is told of it. Before anything that looks at connections.
    drops = [(one, ADDRESSES[other]) for peer in others for one, other in ((name, peer), (peer, name))]
    try:
        for host, address in drops:
            _drop(host, "--append", address)
        yield
    finally:
        for host, address in drops:
            _drop(host, "--delete", address)


def _drop(name: str, command: str, address: str) -> None:
    """Change what a host's kernel drops. From this machine: the host itself may not."""
    shown = ["docker", "inspect", "--format", "{{.State.Pid}}", HOSTS[name].name]
    process = subprocess.run(shown, check=True, capture_output=True, text=True).stdout.strip()
    rule = ["iptables", "--table", "raw", command, "PREROUTING", "--source", address, "--jump", "DROP"]
    as_root = [] if os.geteuid() == 0 else ["sudo", "--non-interactive"]
    subprocess.run([*as_root, "nsenter", "--target", process, "--net", *rule], check=True, capture_output=True)


@contextmanager
def without_firewalls() -> Iterator[None]:
    """Take the hosts' firewalls away meanwhile, so that the servers themselves must say no."""
    names = ("edge1", *APPS, "db1", "redis1")
    for name in names:
        HOSTS[name].run("systemctl", "stop", "quintet-firewall")
    try:
        yield
    finally:
        for name in names:
            HOSTS[name].run("systemctl", "start", "quintet-firewall")
