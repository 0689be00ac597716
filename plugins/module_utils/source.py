# Copyright (c) 2026 The Quintet authors
# MIT License (see LICENSE)
"""An app's source on the controller: which files it has, their digest, their archive, and its lock of dependencies."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

# Lines of a requirements file that name another file, a directory or an editable package.
NOT_LOCKED_HERE = re.compile(r"^(?:(?:-r|-c|-e|--requirement|--constraint|--editable)\b|\.|/|file:).*$", re.MULTILINE)


class SourceError(Exception):
    """What is wrong with a source, where, and what to do."""


# Never part of a source, whatever its ignore files say: repositories, environments, caches, local state and secrets.
ALWAYS_IGNORED = (
    ".git",
    "__pycache__",
    "*.pyc",
    ".venv",
    "node_modules",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    ".env",
    "*.sqlite3",
)


@dataclass(frozen=True)
class Entry:
    """One file of a source: a relative path, and a link's target where it is a link."""

    path: PurePosixPath
    executable: bool
    link: str | None


def source_directory(app: dict[str, Any], inventory: str | None) -> Path:
    """Return where an app's source is.

    A relative directory starts at the inventory, the file that names it; a link to it is followed (prod -> inventories/prod).
    """
    folder: Path = Path(os.path.realpath(inventory or ".")) / app["source"]["directory"]
    return folder


def servers_of(app: dict[str, Any]) -> list[str]:
    """Return the packages that serve an app, which its lock must have."""
    return ["gunicorn", "daphne"] if app["asgi"] else ["gunicorn"]


def source_problems(apps: list[dict[str, Any]], where: list[str], inventory: str | None) -> list[str]:
    """Say which apps' sources or locks are not there or can't be used, for apps with all defaults filled in."""
    found = []
    for app, place in zip(apps, where, strict=True):
        try:
            directory = source_directory(app, inventory)
            list_files(directory)
            check_lock(directory, app["requirements"], servers_of(app))
        except SourceError as error:
            found.append(f"{place}.{error}")
        except (OSError, UnicodeDecodeError) as error:
            found.append(f"{place}.source.directory: can't be read: {error}. Make it readable, with names in UTF-8.")
    return found


def list_files(directory: Path) -> list[Entry]:
    """Return the files of a source in a fixed order, without what is ignored.

    Raises SourceError for a directory that is not there, is empty, or holds a link that leads out of it.
    """
    if not directory.is_dir():
        raise SourceError(f"source.directory: {directory} is no directory on the controller. Correct the path.")
    if shutil.which("git") is None:
        raise SourceError(
            "source.directory: git is needed on the controller to leave out what .gitignore files name. Install git."
        )
    with tempfile.TemporaryDirectory(prefix="quintet-") as repository:
        # An empty repository beside the directory: the answer is the same whether it is committed, or a checkout at all.
        # Nor does a hook's or a continuous integration's own GIT_INDEX_FILE matter.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        environment = {**inherited, "GIT_DIR": repository, "GIT_WORK_TREE": str(directory)}
        for command in (["init", "--quiet"], ["config", "core.excludesFile", os.devnull]):
            subprocess.run(["git", *command], env=environment, check=True, capture_output=True)
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--others", "--exclude-standard"]
            + [f"--exclude={pattern}" for pattern in ALWAYS_IGNORED],
            env=environment,
            cwd=directory,
            check=False,
            capture_output=True,
        )
    if listed.returncode != 0:
        raise SourceError(f"source.directory: git could not list {directory}: {listed.stderr.decode().strip()}.")
    entries = [entry_of(directory, name) for name in sorted(listed.stdout.decode().split("\0")) if name]
    if not entries:
        raise SourceError(f"source.directory: {directory} has no files that are not ignored. Correct the path.")
    return entries


def entry_of(directory: Path, name: str) -> Entry:
    """Describe one listed file; raises SourceError for a link that leads out of the source."""
    path = directory / name
    link = None
    if path.is_dir() and not path.is_symlink():
        raise SourceError(
            f"source.directory: {name} is a git repository of its own, perhaps a submodule, and would be left out. "
            "Make its files part of the source, or add it to .gitignore."
        )
    if path.is_symlink():
        link = str(path.readlink())
        target = (path.parent / link).resolve()
        if Path(link).is_absolute() or not target.is_relative_to(directory.resolve()):
            raise SourceError(
                f"source.directory: {name} is a link to {link}, which is not part of the source. "
                "Replace it by a copy or a link inside the source."
            )
    return Entry(PurePosixPath(name), link is None and os.access(path, os.X_OK), link)


def digest(directory: Path, entries: list[Entry]) -> str:
    """Return the SHA-256 of all paths, modes and contents, the same for the same files wherever they are."""
    total = hashlib.sha256()
    for entry in entries:
        content = entry.link.encode() if entry.link is not None else (directory / entry.path).read_bytes()
        kind = "link" if entry.link is not None else "executable" if entry.executable else "file"
        total.update(f"{kind} {entry.path} {hashlib.sha256(content).hexdigest()}\n".encode())
    return total.hexdigest()


def write_archive(directory: Path, entries: list[Entry], target: Path) -> None:
    """Write the files as a gzipped tar without owners and times."""
    with (
        target.open("wb") as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        # Directories too: what unpacks gives its owner and mode only to members.
        for folder in sorted({parent for entry in entries for parent in entry.path.parents} - {PurePosixPath(".")}):
            member = tarfile.TarInfo(str(folder))
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(member)
        for entry in entries:
            member = tarfile.TarInfo(str(entry.path))
            if entry.link is not None:
                member.type, member.linkname = tarfile.SYMTYPE, entry.link
                archive.addfile(member)
                continue
            content = (directory / entry.path).read_bytes()
            member.size = len(content)
            member.mode = 0o755 if entry.executable else 0o644
            archive.addfile(member, io.BytesIO(content))


def requirement_names(lock: str) -> dict[str, bool]:
    """Return the packages that a requirements file names, normalized, each with whether it is locked with a hash."""
    names: dict[str, bool] = {}
    for line in lock.replace("\\\n", " ").splitlines():
        requirement = line.split(" #")[0].strip()
        if not requirement or requirement.startswith(("#", "-")):
            continue
        name = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", requirement)
        if name is not None:
            normalized = re.sub(r"[-_.]+", "-", name.group()).lower()
            names[normalized] = "--hash=" in requirement
    return names


def check_lock(directory: Path, requirements: str, needed: list[str]) -> str:
    """Return the SHA-256 of the lock; raises SourceError when it is missing, not locked with hashes, or incomplete."""
    path = directory / requirements
    how = f"Make it with: uv pip compile --universal --generate-hashes requirements.in -o {requirements}"
    if not path.is_file():
        raise SourceError(f"requirements: there is no {requirements} in {directory}. {how}")
    text = path.read_text()
    foreign = NOT_LOCKED_HERE.findall(text)
    if foreign:
        raise SourceError(
            f"requirements: {path} takes dependencies from elsewhere: {', '.join(foreign)}. "
            f"A change there would go unnoticed; compile all into this one file. {how}"
        )
    names = requirement_names(text)
    unlocked = sorted(name for name, locked in names.items() if not locked)
    if unlocked:
        raise SourceError(
            f"requirements: {path} does not lock {', '.join(unlocked)} with a hash, so hosts could get other code "
            f"than you tested. {how}"
        )
    missing = [name for name in needed if name not in names]
    if missing:
        raise SourceError(
            f"requirements: {path} has no {' and no '.join(missing)}, which serves the app. "
            f"Add it to your requirements.in. {how}"
        )
    return hashlib.sha256(text.encode()).hexdigest()
