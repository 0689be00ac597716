"""Taking a built generation out of the hands of the user that built it."""

import grp
import os
import re
import stat
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from quintet_host.errors import QuintetError
from quintet_host.files import write_json
from quintet_host.generation import Generation, load
from quintet_host.host import Host
from quintet_host.state import GenerationState

VENV_TARGET = re.compile(r"\.\./\.\./venvs/([A-Za-z0-9][A-Za-z0-9._-]*)")
COMPLETE = ".complete"


@dataclass(frozen=True)
class Permissions:
    """What directories and files of a tree get; `executable` is for files that their owner could execute."""

    owner: int
    group: int
    directory: int
    file: int
    executable: int


def seal(host: Host, app: str, identifier: str, manifest: dict[str, Any] | None = None) -> bool:
    """Make all of a generation root's and mark it built; returns whether its state changed.

    `manifest`, when given, becomes its generation.json first.

    src and venv become readable by the app's group, static and units by all; nothing is writable but by root, nothing
    set-id, and links are never followed. Raises QuintetError when a part is missing or is something other than files,
    directories and links.
    """
    if manifest is not None:
        if not host.layout.generation(app, identifier).is_dir():
            load(host.layout, app, identifier)  # says what there is
        write_json(host.layout.generation(app, identifier) / "generation.json", manifest)
    generation = load(host.layout, app, identifier)
    owner, root_group = host.owner
    private = Permissions(owner, _group_number(generation), 0o750, 0o640, 0o750)
    public = Permissions(owner, root_group, 0o755, 0o644, 0o644)
    _seal_parts(generation, {"src": private, "static": public, "units": public}, owner, root_group)
    _seal_venv(host, generation, private)
    _link_run(host, generation)
    # After this its files survive a loss of power as surely as the state that vouches for them.
    host.system.flush()
    store = host.store(app)
    if store.generation(identifier).state == "good":
        return False
    began = store.generation(identifier)
    changed = store.mark(identifier, "built", "", host.clock.now())
    if changed:
        host.log(app, "build", "ok", generation=identifier, **build_seconds(host, began))
    return changed


def build_seconds(host: Host, began: GenerationState) -> dict[str, int]:
    """Return what the log tells of how long a build took, given the generation's state until now."""
    if began.state != "building" or not began.since:
        return {}
    return {"seconds": round((host.clock.now() - datetime.fromisoformat(began.since)).total_seconds())}


def _seal_parts(generation: Generation, parts: dict[str, Permissions], owner: int, group: int) -> None:
    """Seal the generation's directory: named parts as told, anything else for root alone."""
    alone = Permissions(owner, group, 0o700, 0o640, 0o750)
    descriptor = _open_directory(str(generation.path), None)
    try:
        os.fchown(descriptor, owner, group)
        os.fchmod(descriptor, 0o751)
        names = _names(descriptor)
        for name in sorted({"src", "units"} - set(names)):
            raise _unsealable(generation, f"it has no {name}")
        for name in names:
            shown = str(generation.path / name)
            if name in parts:
                if not stat.S_ISDIR(os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode):
                    raise _unsealable(generation, f"its {name} is not a directory")
                seal_tree(descriptor, name, parts[name], shown)
            else:
                _seal_entry(descriptor, name, alone, shown)
    finally:
        os.close(descriptor)


def seal_tree(parent: int, name: str, permissions: Permissions, shown: str) -> None:
    """Set owner, group and mode of a directory (`name` in the open directory `parent`) and all below it.

    Each directory is taken over before it is listed: from then on the build user can't swap its entries.
    """
    descriptor = _open_directory(name, parent)
    try:
        os.fchown(descriptor, permissions.owner, permissions.group)
        os.fchmod(descriptor, permissions.directory)
        for child in _names(descriptor):
            _seal_entry(descriptor, child, permissions, f"{shown}/{child}")
    finally:
        os.close(descriptor)


def _seal_entry(directory: int, name: str, permissions: Permissions, shown: str) -> None:
    found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    if stat.S_ISDIR(found.st_mode):
        seal_tree(directory, name, permissions, shown)
    elif stat.S_ISREG(found.st_mode):
        _seal_file(directory, name, found, permissions)
    elif stat.S_ISLNK(found.st_mode):
        os.chown(name, permissions.owner, permissions.group, dir_fd=directory, follow_symlinks=False)
    else:
        raise QuintetError(
            f"{shown} is neither a file nor a directory nor a link.",
            "Sealing a generation stopped there; it is not served.",
            "Remove it from the source or the build commands and build again.",
        )


def _seal_file(directory: int, name: str, found: os.stat_result, permissions: Permissions) -> None:
    if found.st_nlink > 1:
        # Its other names (an installer's cache) are not part of this generation and keep the old file.
        _copy_in_place(directory, name, found.st_mode)
    # chown clears set-id bits and capabilities, so the mode comes second.
    os.chown(name, permissions.owner, permissions.group, dir_fd=directory, follow_symlinks=False)
    mode = permissions.executable if found.st_mode & stat.S_IXUSR else permissions.file
    os.chmod(name, mode, dir_fd=directory)


def _copy_in_place(directory: int, name: str, mode: int) -> None:
    copy = f".{name[:200]}.sealing"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directory)
    target = os.open(copy, flags, stat.S_IMODE(mode) & 0o700, dir_fd=directory)
    with os.fdopen(source, "rb") as reader, os.fdopen(target, "wb") as writer:
        while part := reader.read(1024 * 1024):
            writer.write(part)
    os.utime(copy, ns=(found_time := os.stat(name, dir_fd=directory).st_mtime_ns, found_time), dir_fd=directory)
    os.rename(copy, name, src_dir_fd=directory, dst_dir_fd=directory)


def _seal_venv(host: Host, generation: Generation, permissions: Permissions) -> None:
    """Seal the virtual environment unless an earlier generation with the same one did."""
    link = generation.path / "venv"
    target = VENV_TARGET.fullmatch(str(link.readlink())) if link.is_symlink() else None
    if target is None:
        raise _unsealable(generation, "its venv is not a link to ../../venvs/<digest>")
    venv = host.layout.venvs(generation.app) / target[1]
    if _is_complete(venv, permissions.owner):
        return
    parent = _open_directory(str(venv.parent), None)
    try:
        seal_tree(parent, venv.name, permissions, str(venv))
    except FileNotFoundError as error:
        raise _unsealable(generation, f"its virtual environment {venv} does not exist") from error
    finally:
        os.close(parent)
    host.system.flush()
    mark = venv / COMPLETE
    mark.unlink(missing_ok=True)
    mark.touch(mode=0o644)
    mark.chmod(0o644)


def _is_complete(venv: Path, owner: int) -> bool:
    """Say whether a venv is sealed; a mark that the build user could have set does not count."""
    try:
        found = [venv.lstat(), (venv / COMPLETE).lstat()]
    except OSError:
        return False
    return all(one.st_uid == owner for one in found) and stat.S_ISREG(found[1].st_mode)


def _link_run(host: Host, generation: Generation) -> None:
    link = generation.path / "run"
    target = host.layout.run(generation.app, generation.identifier)
    if not link.is_symlink() or link.readlink() != target:
        link.unlink(missing_ok=True)
        link.symlink_to(target)


def _group_number(generation: Generation) -> int:
    try:
        return grp.getgrnam(generation.group).gr_gid
    except KeyError as error:
        raise _unsealable(generation, f"there is no group {generation.group} on this host") from error


def _names(directory: int) -> list[str]:
    with os.scandir(directory) as entries:
        return [entry.name for entry in entries]


def _open_directory(name: str, parent: int | None) -> int:
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)


def _unsealable(generation: Generation, why: str) -> QuintetError:
    return QuintetError(
        f"{generation.app}: generation {generation.identifier} can't be sealed: {why}.",
        f"In {generation.path}. Nothing that serves was changed.",
        "Build it again: run the playbook that deploys this app.",
    )
