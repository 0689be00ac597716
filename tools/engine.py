"""Make sure that a Docker engine answers: install it where there is none, start it where it sleeps."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from console import CACHE, Failure, as_root, ask, install, main, run, say, which

START_SECONDS = 60
SOCKET = Path("/run/docker.sock")

# A killed engine leaves these behind, and the next one believes them when any process has that number by then.
ENGINE_PID_FILE = Path("/run/docker.pid")
CONTAINERD_PID_FILE = Path("/run/docker/containerd/containerd.pid")


def ensure_engine() -> None:
    """Return when `docker` reaches an engine; raises `Failure` when that can't be had."""
    purpose = "run the hosts of the demo and of the tests"
    if which("docker") is None:
        install(engine_packages(), purpose)
    refusal = answer()
    if is_forbidden(refusal):
        share_socket()
        refusal = answer()
    if refusal:
        if os.environ.get("DOCKER_HOST"):
            raise Failure(
                f"No Docker engine answers at DOCKER_HOST={os.environ['DOCKER_HOST']}: {refusal}",
                "Start that engine, or unset DOCKER_HOST to use one on this machine.",
            )
        if which("dockerd") is None:
            install(engine_packages(), purpose)
        start()
        refusal = answer()
    # An engine that has just been started has a new socket.
    if is_forbidden(refusal):
        share_socket()
        refusal = answer()
    if refusal:
        raise Failure(f"The Docker engine doesn't answer: {refusal}", "Make 'docker version' work, then start again.")


def answer() -> str:
    """Return why the engine doesn't answer; empty when it does."""
    if which("docker") is None:
        return "there is no docker command"
    reply = ask(["docker", "version", "--format", "{{.Server.Version}}"])
    return "" if reply.returncode == 0 else reply.stderr.strip() or f"code {reply.returncode}"


def is_forbidden(refusal: str) -> bool:
    """Tell whether an engine runs and only refuses this user."""
    return "permission denied" in refusal


def engine_packages() -> list[str]:
    """Return Debian's packages of the engine: since Debian 13 the command is one of its own."""
    split = ask(["apt-cache", "show", "docker-cli"]).returncode == 0 if which("apt-cache") else False
    return ["docker.io", "docker-cli"] if split else ["docker.io"]


def start() -> None:
    """Start the engine and wait until it answers, at most `START_SECONDS`."""
    purpose = "start the Docker engine"
    if is_booted_by_systemd():
        say("Starting the Docker engine by systemd")
        run(as_root(["systemctl", "start", "docker"], purpose), "See: journalctl -u docker")
        wait("journalctl -u docker")
        return
    dockerd = which("dockerd")
    if dockerd is None:
        raise Failure("There is a docker command but no dockerd.", "Install Docker's engine, then start again.")
    if ENGINE_PID_FILE.exists() and not is_stale(ENGINE_PID_FILE, "dockerd"):
        # Started a moment ago, by its package or by somebody else.
        wait("of the engine that runs already")
        return
    for path, name in ((ENGINE_PID_FILE, "dockerd"), (CONTAINERD_PID_FILE, "containerd")):
        if path.exists() and is_stale(path, name):
            say(f"Removing {path}, left behind by a {name} that was killed")
            run(as_root(["rm", "-f", str(path)], purpose), f"Remove {path} by hand, then start again.")
    CACHE.mkdir(exist_ok=True)
    log = CACHE / "dockerd.log"
    say(f"Starting the Docker engine in the background (log: {log})")
    # A session of its own: the engine must outlive this command and its terminal.
    script = f"setsid '{dockerd}' </dev/null >'{log}' 2>&1 & echo $!"
    started = subprocess.run(as_root(["sh", "-c", script], purpose), check=False, stdout=subprocess.PIPE, text=True)
    wait(str(log), Path("/proc") / started.stdout.strip())


def is_booted_by_systemd() -> bool:
    """Tell whether systemd is this machine's PID 1."""
    return Path("/run/systemd/system").is_dir()


def wait(where: str, process: Path | None = None) -> None:
    """Wait until the engine answers or only forbids; raises `Failure` naming `where` its messages are.

    `process` is the engine's directory below /proc, and `where` then the path of its log.
    """
    say(f"Waiting for the Docker engine to answer, at most {START_SECONDS} s")
    deadline = time.monotonic() + START_SECONDS
    while (refusal := answer()) and not is_forbidden(refusal):
        if process is not None and not process.exists():
            refusal = "it ended at once"
        elif time.monotonic() < deadline:
            time.sleep(0.5)
            continue
        last = Path(where).read_text(errors="replace").splitlines()[-8:] if process is not None else []
        raise Failure(
            "\n".join([f"The Docker engine doesn't start: {refusal}", *last]),
            f"Read its messages ({where}), mend the cause, then start again.",
        )


def is_stale(path: Path, name: str) -> bool:
    """Tell whether the PID file names no running process called `name`. A file without a number is stale, too."""
    try:
        number = int(path.read_text())
        return Path(f"/proc/{number}/comm").read_text().strip() != name
    except (FileNotFoundError, ValueError):
        return True


def share_socket() -> None:
    """Let this user reach the engine until the engine starts anew, without a new login as group docker needs."""
    user = str(os.geteuid())
    say(f"Letting user {user} use the Docker engine until it restarts (chown {SOCKET})")
    command = as_root(["chown", user, str(SOCKET)], "use the Docker engine")
    run(command, "Add your user to the group docker, log in again, then start again.")


if __name__ == "__main__":
    main(ensure_engine)
