"""Looking for secrets where nobody may find them: in texts, processes and files, on a host and on the controller.

No search has a secret in its own arguments: what is looked for comes by standard input.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hosts import Host

Canaries = Mapping[str, str]

# Looks at all processes of its own PID namespace until its standard input ends. While a process is young, its arguments and its environment
# are read again and again; later on, where the arguments are other ones, or a handle on the environment has nothing more to give, which
# is so from the moment on in which another program is executed. So the processor is left to what is watched.
SAMPLER = """
import json, os, select, sys, time
wanted = {name: [form.encode() for form in forms] for name, forms in json.loads(sys.stdin.readline()).items()}
own, seen, rounds = os.readlink("/proc/self/ns/pid"), {}, 0
# By pid: since when it is known, and the handles of one that is no longer young, with its arguments; and what was read of which user.
since, handles, known = {}, {}, set()
YOUNG_SECONDS, MOST_BYTES = 1, 2**20

def look(pid):
    user = os.stat(f"/proc/{pid}").st_uid
    for place in ("cmdline", "environ"):
        with open(f"/proc/{pid}/{place}", "rb") as handle:
            text = handle.read()
        if (place, user, text) in known:
            continue
        known.add((place, user, text))
        for name, forms in wanted.items():
            if any(form in text for form in forms):
                seen[f"{place} {user} {name}"] = open(f"/proc/{pid}/comm").read().strip()

def hold(pid):
    try:
        environment = os.open(f"/proc/{pid}/environ", os.O_RDONLY)
    except OSError:
        # One of the kernel's own, unless it has ended.
        since[pid] = None
        raise
    try:
        arguments = os.open(f"/proc/{pid}/cmdline", os.O_RDONLY)
    except OSError:
        os.close(environment)
        raise
    return arguments, environment, os.pread(arguments, MOST_BYTES, 0)

def forget(pid):
    arguments, environment, _ = handles.pop(pid)
    os.close(arguments)
    os.close(environment)

print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0.01)[0]:
    rounds += 1
    now, listed = time.monotonic(), set(filter(str.isdigit, os.listdir("/proc")))
    for pid in since.keys() - listed:
        del since[pid]
        if pid in handles:
            forget(pid)
    for pid in listed:
        try:
            if pid not in since:
                # Whose namespace it is never changes; None is not to be looked at.
                since[pid] = now if os.readlink(f"/proc/{pid}/ns/pid") == own else None
            if since[pid] is None:
                continue
            if pid in handles:
                arguments, environment, text = handles[pid]
                if os.pread(environment, 1, 0) and os.pread(arguments, MOST_BYTES, 0) == text:
                    continue
                forget(pid)
                since[pid] = now
            elif now - since[pid] > YOUNG_SECONDS:
                # Before the look, so that nothing comes in between.
                handles[pid] = hold(pid)
            look(pid)
        except OSError:
            pass  # it has ended
print(json.dumps({"rounds": rounds, "seen": [[*key.split(" ", 2), seen[key]] for key in sorted(seen)]}))
"""

# Prints who, of all users but root, can open each of the files.
READERS = """
import json, os, pwd, sys
paths = json.load(sys.stdin)
found = {path: [] for path in paths}
for user in pwd.getpwall():
    if user.pw_uid == 0:
        continue
    back, there = os.pipe()
    if os.fork() == 0:
        os.initgroups(user.pw_name, user.pw_gid)
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
        readable = []
        for path in paths:
            try:
                open(path, "rb").close()
                readable.append(path)
            except OSError:
                pass
        os.write(there, json.dumps(readable).encode())
        os._exit(0)
    os.close(there)
    for path in json.loads(os.fdopen(back, "rb").read()):
        found[path].append(user.pw_name)
    os.wait()
print(json.dumps(found))
"""


def forms(value: str) -> list[str]:
    """Return how a secret may be written: as it is, and as modules, URLs and JSON write it."""
    encoded = base64.b64encode(value.encode()).decode().rstrip("=")
    return sorted({value, encoded, urllib.parse.quote(value, safe=""), json.dumps(value)[1:-1]})


def seen_in(text: str, canaries: Canaries) -> list[str]:
    """Return the names of the secrets that a text has."""
    return sorted(name for name, value in canaries.items() if any(form in text for form in forms(value)))


def written(canaries: Canaries) -> str:
    """Return all forms of the secrets, one a line, as grep reads patterns."""
    return "".join(f"{form}\n" for value in canaries.values() for form in forms(value))


def files_with(host: Host, canaries: Canaries) -> list[str]:
    """Return the paths of all files of a host that have a secret, backups and temporary files among them."""
    command = ["grep", "-rlasF", "-f", "-", "--devices=skip", "--exclude-dir=proc", "--exclude-dir=sys", "/"]
    # Files may vanish while it looks, and then its code says so.
    return sorted(host.run(*command, stdin=written(canaries), check=False).splitlines())


def local_files_with(directories: list[Path], canaries: Canaries) -> list[str]:
    """Return the paths of the controller's files below some directories that have a secret."""
    done = subprocess.run(
        ["grep", "-rlasF", "-f", "-", "--devices=skip", *map(str, directories)],
        input=written(canaries),
        capture_output=True,
        text=True,
        check=False,
    )
    # One of the directories may be below another.
    return sorted(set(done.stdout.splitlines()))


def readers(host: Host, paths: list[str]) -> dict[str, list[str]]:
    """Return for each file of a host who, of all users but root, can open it."""
    found: dict[str, list[str]] = json.loads(host.run("python3", "-c", READERS, stdin=json.dumps(paths)))
    return found


@dataclass
class Sightings:
    """What was seen in processes: (cmdline or environ, user id, name of the secret, the process's name)."""

    seen: list[tuple[str, int, str, str]] = field(default_factory=list)
    rounds: int = 0

    def add(self, report: dict[str, Any]) -> None:
        """Take in what a sampler has seen."""
        self.rounds += report["rounds"]
        self.seen += [(place, int(user), name, process) for place, user, name, process in report["seen"]]


@contextmanager
def watched(canaries: Canaries, host: Host | None = None) -> Iterator[Sightings]:
    """Look at all processes of a host, or of this machine, a hundred times a second; the sightings are there at the end."""
    there = ["docker", "exec", "--interactive", host.name, "python3"] if host else [sys.executable]
    sightings = Sightings()
    sampler = subprocess.Popen([*there, "-c", SAMPLER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert sampler.stdin
    assert sampler.stdout
    with sampler:
        sampler.stdin.write(json.dumps({name: forms(value) for name, value in canaries.items()}) + "\n")
        sampler.stdin.flush()
        assert sampler.stdout.readline() == "ready\n"
        try:
            yield sightings
        finally:
            sampler.stdin.close()
            sightings.add(json.loads(sampler.stdout.read()))
