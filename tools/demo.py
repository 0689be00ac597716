"""The demo: one systemd host, the whole site on it by site.yml, and its addresses.

    demo.py up | down

DEMO_HTTP_PORT (8080) and DEMO_HTTPS_PORT (8443) are the ports on this machine's loopback address, DEMO_SUITE (trixie) the host's system.
"""

from __future__ import annotations

import os
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from console import CACHE, ROOT, Failure, main, run, say
from engine import ensure_engine
from hosts import LABEL, docker, down, image_name, inspect, up

HOST = "quintet-demo"
# The settings of the two ports, with their defaults, and the host's ports that they lead to.
PORTS = {"DEMO_HTTP_PORT": (8080, 80), "DEMO_HTTPS_PORT": (8443, 443)}
# What has signed the demo's certificate: there, and the copy on this machine.
AUTHORITY = "/etc/nginx/quintet-tls/authority.pem"
AUTHORITY_COPY = CACHE / "demo-authority.pem"
ANSWER_SECONDS = 60


def start() -> None:
    """Start or converge the demo, wait until it answers, and print its address."""
    suite = os.environ.get("DEMO_SUITE") or "trixie"
    ports = {name: read_port(name) for name in PORTS}
    image_name(suite)
    ensure_engine()
    check_host(suite, ports)
    up(HOST, suite, published(ports))

    say("Running site.yml on it")
    bin_directory = Path(sys.executable).parent
    environment = os.environ | {
        "PATH": f"{bin_directory}{os.pathsep}{os.environ['PATH']}",
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
    }
    command = ["ansible-playbook", "site.yml", "-i", "inventories/demo"]
    run(command, "Mend the cause and run it again: make demo", cwd=ROOT, env=environment)

    docker(
        ["cp", f"{HOST}:{AUTHORITY}", str(AUTHORITY_COPY)], "The certificate of the demo's authority can't be fetched"
    )
    http, https = ports.values()
    wait_for_site(f"http://127.0.0.1:{http}")
    wait_for_site(f"https://127.0.0.1:{https}", AUTHORITY_COPY)
    say(f"The demo is ready: http://127.0.0.1:{http}  https://127.0.0.1:{https}    (make demo-down removes it)")
    say(
        f"An authority of its own has signed its certificate: a browser trusts it once {AUTHORITY_COPY.relative_to(ROOT)} is"
    )
    say(
        f"imported there, and so does  curl --cacert {AUTHORITY_COPY.relative_to(ROOT)} https://127.0.0.1:{https}/healthz"
    )


def read_port(name: str) -> int:
    """Return the port to publish; raises `Failure` when the variable of that name holds no port."""
    default = PORTS[name][0]
    text = os.environ.get(name) or str(default)
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise Failure(f"{name}: '{text}' is no port.", f"Give a number from 1 to 65535: make demo {name}={default + 1}")
    return int(text)


def published(ports: Mapping[str, int]) -> list[str]:
    """Return what the engine is told about the ports."""
    return [f"127.0.0.1:{port}:{PORTS[name][1]}" for name, port in ports.items()]


def in_words(suite: str, publish: Sequence[str]) -> str:
    """Return the settings that give a host of that suite and those ports; a port that can't be read is a question mark."""
    parts = [entry.split(":") for entry in publish]
    by_inner = {part[2]: part[1] for part in parts if len(part) == 3}
    texts = [f"{name}={by_inner.get(str(inner), '?')}" for name, (_, inner) in PORTS.items()]
    return " ".join([f"DEMO_SUITE={suite or '?'}", *texts])


def check_host(suite: str, ports: Mapping[str, int]) -> None:
    """Check that the demo's host can be what is asked for.

    Raises `Failure` when it exists with another system or ports, or when a port belongs to somebody else.
    """
    wanted = " ".join([suite, *published(ports)])
    present = inspect("container", HOST, f'{{{{.State.Running}}}} {{{{index .Config.Labels "{LABEL}"}}}}')
    running, _, has = present.partition(" ")
    if present and has != wanted:
        has_suite, *has_publish = has.split(" ")
        raise Failure(
            f"The demo host runs already with {in_words(has_suite, has_publish)}"
            f"; asked for is {in_words(suite, published(ports))}.",
            "Remove it first (its data goes, too): make demo-down; or ask for what it has.",
        )
    for name, port in ports.items():
        if running != "true" and not is_free(port):
            raise Failure(
                f"Port {port} of 127.0.0.1 is taken by another program.",
                f"Choose another one: make demo {name}={port + 1 if port < 65535 else PORTS[name][0]}",
            )


def is_free(port: int) -> bool:
    """Tell whether nobody listens on the port of the loopback address."""
    with socket.socket() as listener:
        # As the engine does it: a closed connection of the last demo doesn't count.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except PermissionError:
            # A low port: the engine may bind it, this user may not; is anybody there?
            with socket.socket() as client:
                return client.connect_ex(("127.0.0.1", port)) != 0
        except OSError:
            return False
    return True


def wait_for_site(address: str, authority: Path | None = None) -> None:
    """Wait until the site says that it is healthy, at most `ANSWER_SECONDS`; raises `Failure` with its last answer.

    Over HTTPS its certificate must be one of the authority's.
    """
    url = f"{address}/healthz"
    say(f"Waiting for {url} to answer, at most {ANSWER_SECONDS} s")
    # The demo is on this machine, so no proxy leads to it.
    trust = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=authority))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), trust)
    deadline = time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            opener.open(url, timeout=5).close()
            return
        except urllib.error.HTTPError as error:
            last = f"HTTP status {error.code}: {error.read(500).decode(errors='replace')}"
        except OSError as error:
            last = str(error)
        if time.monotonic() > deadline:
            break
        time.sleep(0.5)
    raise Failure(
        f"{url} doesn't answer after {ANSWER_SECONDS} s. Last: {last}",
        f"Look at the host: docker exec {HOST} journalctl --boot --priority warning",
    )


def stop() -> None:
    """Remove the demo's host with its volumes."""
    down([HOST])


if __name__ == "__main__":
    actions = {"up": start, "down": stop}
    if len(sys.argv) != 2 or sys.argv[1] not in actions:
        sys.exit("usage: demo.py up | down")
    main(actions[sys.argv[1]])
