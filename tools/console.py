"""What the tools of the checkout share: telling what they do, running commands, becoming root.

Standard library only: these tools run before anything is installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"

# A user's PATH on Debian lacks the directories where dockerd lives.
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])


class Failure(Exception):
    """Something that the user must know: what is wrong and where, and what to do about it."""

    def __init__(self, wrong: str, remedy: str) -> None:
        super().__init__(f"{wrong}\n{remedy}")


def say(text: str) -> None:
    """Tell the user what is being done, at once even into a pipe."""
    print(f"==> {text}", flush=True)


def main(action: Callable[[], None]) -> None:
    """Run `action`; end the process with code 1 and the plain text of a `Failure`, with 130 on an interrupt."""
    try:
        action()
    except Failure as failure:
        print(f"error: {failure}", file=sys.stderr, flush=True)
        sys.exit(1)
    except PermissionError as error:
        remedy = "Files of another user are in the way, perhaps from a run as root: give them to yourself (chown)."
        print(f"error: {error.strerror}: {error.filename}\n{remedy}", file=sys.stderr, flush=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def which(name: str) -> str | None:
    """Return the path of a command, looking where root looks too; None when there is none."""
    return shutil.which(name, path=SEARCH_PATH)


def run(command: Sequence[str], remedy: str, **options: Any) -> None:
    """Run a command with its output shown.

    Raises `Failure` with `remedy` when it ends with another code than 0.
    """
    code = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, **options).returncode
    if code != 0:
        raise Failure(f"'{' '.join(command)}' ended with code {code}; its output above tells why.", remedy)


def ask(command: Sequence[str], timeout: float = 20) -> subprocess.CompletedProcess[str]:
    """Run a command, in at most `timeout` seconds, and return what it said; a time-out counts as code 124."""
    try:
        return subprocess.run(
            command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"no answer within {timeout:g} s")


def as_root(command: Sequence[str], purpose: str) -> list[str]:
    """Return `command` so that it runs as root: as it is for root, else by sudo.

    Raises `Failure` for a user who can't become root; `purpose` completes "… is needed to".
    """
    if os.geteuid() == 0:
        return list(command)
    by_hand = f"Run this by hand as root, then start again: {' '.join(command)}"
    sudo = which("sudo")
    if sudo is None:
        raise Failure(f"Root is needed to {purpose}, and there is no sudo on this machine.", by_hand)
    # Without a terminal sudo can't ask for a password, and must not try.
    if sys.stdin.isatty():
        return [sudo, *command]
    if ask([sudo, "-n", "true"]).returncode != 0:
        raise Failure(f"Root is needed to {purpose}, and sudo asks for a password where there is no terminal.", by_hand)
    return [sudo, "-n", *command]


def install(packages: Sequence[str], purpose: str) -> None:
    """Install Debian packages; `purpose` completes "… is needed to".

    Raises `Failure` on a system without apt, and when apt fails.
    """
    names = " ".join(packages)
    if which("apt-get") is None:
        raise Failure(
            f"{names} is needed to {purpose}, and this machine has no apt-get to install it with.",
            "Install it as your system does it, then start again.",
        )
    say(f"Installing {names}, to {purpose}")
    remedy = f"Install by hand, then start again: apt-get install {names}"
    apt = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-o", "DPkg::Lock::Timeout=120"]
    installation = as_root([*apt, "install", "-y", "--no-install-recommends", *packages], purpose)
    run(as_root([*apt, "update"], purpose), remedy)
    run(installation, remedy)
