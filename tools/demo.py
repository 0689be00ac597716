"""The demo: one systemd host, the whole site on it by site.yml, and its address.

    demo.py up | down

DEMO_HTTP_PORT (8080) is the port on this machine's loopback address, DEMO_SUITE (trixie) the host's system.
"""

from __future__ import annotations

import os
import socket
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from console import ROOT, Failure, main, run, say
from engine import ensure_engine
from hosts import LABEL, down, image_name, inspect, up

HOST = "quintet-demo"
ANSWER_SECONDS = 60


def start() -> None:
    """Start or converge the demo, wait until it answers, and print its address."""
    suite = os.environ.get("DEMO_SUITE") or "trixie"
    port = read_port()
    image_name(suite)
    ensure_engine()
    check_host(suite, port)
    up(HOST, suite, [f"127.0.0.1:{port}:80"])

    say("Running site.yml on it")
    bin_directory = Path(sys.executable).parent
    environment = os.environ | {
        "PATH": f"{bin_directory}{os.pathsep}{os.environ['PATH']}",
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
    }
    command = ["ansible-playbook", "site.yml", "-i", "inventories/demo"]
    run(command, "Mend the cause and run it again: make demo", cwd=ROOT, env=environment)

    wait_for_site(port)
    say(f"The demo is ready: http://127.0.0.1:{port}    (make demo-down removes it)")


def read_port() -> int:
    """Return the port to publish; raises `Failure` when DEMO_HTTP_PORT is no port."""
    text = os.environ.get("DEMO_HTTP_PORT") or "8080"
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise Failure(
            f"DEMO_HTTP_PORT: '{text}' is no port.", "Give a number from 1 to 65535: make demo DEMO_HTTP_PORT=8081"
        )
    return int(text)


def check_host(suite: str, port: int) -> None:
    """Check that the demo's host can be what is asked for.

    Raises `Failure` when it exists with another system or port, or when the port belongs to somebody else.
    """
    wanted = f"{suite} 127.0.0.1:{port}:80"
    present = inspect("container", HOST, f'{{{{.State.Running}}}} {{{{index .Config.Labels "{LABEL}"}}}}')
    running, _, has = present.partition(" ")
    if present and has != wanted:
        has_suite, _, has_publish = has.partition(" ")
        has_port = has_publish.split(":")[1] if has_publish.count(":") == 2 else "?"
        raise Failure(
            f"The demo host runs already with DEMO_SUITE={has_suite or '?'} DEMO_HTTP_PORT={has_port}"
            f"; asked for is DEMO_SUITE={suite} DEMO_HTTP_PORT={port}.",
            "Remove it first (its data goes, too): make demo-down; or ask for what it has.",
        )
    if running != "true" and not is_free(port):
        raise Failure(
            f"Port {port} of 127.0.0.1 is taken by another program.",
            f"Choose another one: make demo DEMO_HTTP_PORT={port + 1 if port < 65535 else 8080}",
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


def wait_for_site(port: int) -> None:
    """Wait until the site says that it is healthy, at most `ANSWER_SECONDS`; raises `Failure` with its last answer."""
    url = f"http://127.0.0.1:{port}/healthz"
    say(f"Waiting for {url} to answer, at most {ANSWER_SECONDS} s")
    # The demo is on this machine, so no proxy leads to it.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
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
