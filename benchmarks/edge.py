"""Requests per second through Nginx against Gunicorn alone, in one run.

    python benchmarks/edge.py [HOST] [PATH]

HOST is a running test host (default quintet-demo), PATH a page of its app (default /). On the host a second Gunicorn of
the current generation, with the same settings, listens on a port of the loopback address; wrk asks it and Nginx in
turn, PAIRS times SECONDS each, with 32 connections. Prints each pair, and the median of the ratios.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys

PAIRS = 5
SECONDS = 5
PORT = 8001


def on(host: str, *command: str) -> str:
    """Run a command on the host and return what it prints; raises CalledProcessError when it fails."""
    return subprocess.run(["docker", "exec", host, *command], check=True, capture_output=True, text=True).stdout


def requests_per_second(host: str, domain: str, address: str) -> float:
    """Ask one address for SECONDS; raises ValueError when an answer was not good."""
    said = on(
        host, "wrk", "--threads=2", "--connections=32", f"--duration={SECONDS}s", f"--header=Host: {domain}", address
    )
    if "Non-2xx" in said or "Socket errors" in said:
        raise ValueError(f"{address} did not answer well:\n{said}")
    found = re.search(r"Requests/sec:\s+([\d.]+)", said)
    if found is None:
        raise ValueError(f"wrk said no figure:\n{said}")
    return float(found.group(1))


def main() -> None:
    """Entry point."""
    host, path = ([*sys.argv[1:], "quintet-demo", "/"][:2]) if len(sys.argv) != 2 else (sys.argv[1], "/")
    on(host, "sh", "-c", "command -v wrk || apt-get install --quiet=2 --yes --no-install-recommends wrk")
    app = json.loads(on(host, "quintet", "status", "--json"))["apps"][0]
    generation = f"/srv/{app['app']}/generations/{app['current']}"
    manifest = json.loads(on(host, "cat", f"{generation}/generation.json"))
    domain = json.loads(on(host, "cat", f"/etc/quintet/{app['app']}/probes.json"))["probes"][0]["host"]
    unit = on(host, "cat", f"{generation}/units/gunicorn-{app['app']}@{app['current']}.service")
    application = re.findall(r"\S+:\w+$", unit, re.MULTILINE)[0]
    properties = [f"--property={entry}" for entry in manifest["properties"]]
    on(
        host,
        *["systemd-run", "--quiet", "--unit=quintet-benchmark", "--collect", "--service-type=notify", *properties],
        *[
            f"--property=User={manifest['user']}",
            f"--property=WorkingDirectory={generation}/src",
            "--property=NotifyAccess=all",
        ],
        *[f"{generation}/venv/bin/python", "-m", "gunicorn", "--config", f"{generation}/units/gunicorn.conf.py"],
        *["--bind", f"127.0.0.1:{PORT}", "--no-control-socket", application],
    )
    ratios = []
    try:
        for _ in range(PAIRS):
            edge = requests_per_second(host, domain, f"http://127.0.0.1{path}")
            alone = requests_per_second(host, domain, f"http://127.0.0.1:{PORT}{path}")
            ratios.append(edge / alone)
            print(
                f"{path}: through Nginx {edge:8.0f}/s   Gunicorn alone {alone:8.0f}/s   ratio {edge / alone:.2f}",
                flush=True,
            )
    finally:
        on(host, "systemctl", "stop", "quintet-benchmark")
    print(f"{path}: median ratio {statistics.median(ratios):.2f} of {PAIRS} pairs of {SECONDS} s")


if __name__ == "__main__":
    main()
