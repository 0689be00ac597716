"""Put the collections that requirements files name into collections/, with those that they depend on.

    fetch_collections.py FILE…

They come from Galaxy and, where Galaxy doesn't answer, from PyPI's `ansible` package of the ansible-core in use.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml
from ansible import constants
from ansible.release import __version__ as core_version
from console import CACHE, ROOT, Failure, main, run, say
from packaging.specifiers import SpecifierSet

COLLECTIONS = ROOT / "collections" / "ansible_collections"
ANSWER_SECONDS = 5
INSTALL_SECONDS = 300


def fetch() -> None:
    """Do what the command line asks for."""
    files = [Path(argument) for argument in sys.argv[1:]]
    wanted = read_requirements(files)
    if not unsatisfied(wanted, COLLECTIONS):
        say("The collections are there")
    elif not (galaxy_answers() and install_from_galaxy(files) and not unsatisfied(wanted, COLLECTIONS)):
        install_from_pypi(wanted)
        if missing := unsatisfied(wanted, COLLECTIONS):
            raise Failure(
                f"PyPI's ansible package doesn't have what is needed: {', '.join(missing)}",
                "Run this where Galaxy answers: ansible-galaxy collection install -r requirements.yml -p collections",
            )
    (COLLECTIONS / ".ready").touch()


def read_requirements(files: Iterable[Path]) -> dict[str, str]:
    """Return the wanted versions by collection (`{"ansible.posix": ">=1.4.0"}`)."""
    entries = [entry for file in files for entry in yaml.safe_load(file.read_text())["collections"]]
    return {entry["name"]: str(entry.get("version", "*")) for entry in entries}


def unsatisfied(wanted: Mapping[str, str], where: Path) -> list[str]:
    """Return the collections below `where` that are missing or of a wrong version, dependencies included."""
    missing: list[str] = []
    pending, seen = list(wanted.items()), set[str]()
    while pending:
        name, versions = pending.pop()
        manifest = where.joinpath(*name.split("."), "MANIFEST.json")
        if not manifest.is_file():
            missing.append(f"{name} {versions}")
            continue
        about = json.loads(manifest.read_text())["collection_info"]
        if not SpecifierSet("" if versions == "*" else versions).contains(about["version"]):
            missing.append(f"{name} {versions} (there is {about['version']})")
        elif name not in seen:
            seen.add(name)
            pending += (about.get("dependencies") or {}).items()
    return sorted(missing)


def galaxy_answers() -> bool:
    """Tell within `ANSWER_SECONDS` whether Galaxy can be reached; servers of the user's own are trusted to answer."""
    if constants.config.get_config_value("GALAXY_SERVER_LIST"):
        return True
    server = constants.config.get_config_value("GALAXY_SERVER")
    say(f"Asking {server}, at most {ANSWER_SECONDS} s")
    answered = threading.Event()

    def knock() -> None:
        try:
            urllib.request.urlopen(server, timeout=ANSWER_SECONDS).close()  # noqa: S310  (the user's configured server)
            answered.set()
        except urllib.error.HTTPError:
            answered.set()
        except (OSError, ValueError):
            pass

    # In a thread: looking up a name may take longer than the time-out of the connection.
    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    return answered.is_set()


def install_from_galaxy(files: Iterable[Path]) -> bool:
    """Install what the files name by ansible-galaxy, and tell whether that went well."""
    galaxy = Path(sys.executable).parent / "ansible-galaxy"
    for file in files:
        say(f"Installing the collections of {file} from Galaxy")
        command = [
            str(galaxy),
            "collection",
            "install",
            "-r",
            str(file),
            "-p",
            str(COLLECTIONS.parent),
            "--timeout",
            "20",
        ]
        try:
            if subprocess.run(command, check=False, cwd=ROOT, timeout=INSTALL_SECONDS).returncode != 0:
                return False
        except subprocess.TimeoutExpired:
            say(f"Galaxy took more than {INSTALL_SECONDS} s")
            return False
    return True


def install_from_pypi(wanted: Mapping[str, str]) -> None:
    """Take the wanted collections, and those that they depend on, out of PyPI's ansible package."""
    # ansible N holds the collections of ansible-core 2.(N+7): 12 those of 2.19.
    release = int(core_version.split(".")[1]) - 7
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as directory:
        say(f"Taking the collections from PyPI's ansible {release} (a download of about 55 MB)")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary", ":all:", "--dest", directory, f"ansible=={release}.*"]
        run(command, "Check that this machine reaches Galaxy or PyPI, then start again: make venv")
        (wheel,) = Path(directory).glob("ansible-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            unpack(archive, wanted, Path(directory))


def unpack(archive: zipfile.ZipFile, wanted: Iterable[str], scratch: Path) -> None:
    """Put collections of the archive, and those that they depend on, into `COLLECTIONS`, each by one rename."""
    pending, done = list(wanted), set[str]()
    while pending:
        name = pending.pop()
        prefix = f"ansible_collections/{name.replace('.', '/')}/"
        members = [member for member in archive.namelist() if member.startswith(prefix)]
        if name in done or not members:
            continue
        done.add(name)
        archive.extractall(scratch, members)
        target = COLLECTIONS.joinpath(*name.split("."))
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_symlink():
            raise Failure(
                f"{target} is a link, which is never overwritten.", f"Remove it, or {name} from the requirements."
            )
        shutil.rmtree(target, ignore_errors=True)
        (scratch / prefix).rename(target)
        about = json.loads((target / "MANIFEST.json").read_text())["collection_info"]
        say(f"{name} {about['version']}")
        pending += about.get("dependencies") or {}


if __name__ == "__main__":
    main(fetch)
