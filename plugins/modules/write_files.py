#!/usr/bin/python
# Copyright (c) 2026 The Quintet authors
# MIT License (see LICENSE)
"""Write a set of files as one step on the host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: write_files
short_description: Writes a set of files as one step
version_added: 0.1.0
author: The Quintet authors
description:
  - Brings any number of directories, files and links into the wanted state with one call to the host.
  - All files are staged and validated before the first one is replaced; each is replaced by one rename.
options:
  directories:
    description: Directories to have. Parents that are not listed are made with root as owner and mode 0755.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: Absolute path., type: path, required: true}
      owner: {description: Owner's name., type: str, default: root}
      group: {description: Group's name., type: str, default: root}
      mode: {description: Permissions in octal., type: str, default: "0755"}
  files:
    description: Files to have.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: Absolute path., type: path, required: true}
      content: {description: The whole text., type: str, required: true}
      owner: {description: Owner's name., type: str, default: root}
      group: {description: Group's name., type: str, default: root}
      mode: {description: Permissions in octal., type: str, default: "0644"}
  links:
    description: Symbolic links to have, made after the files. They replace links and files, not directories.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: Absolute path., type: path, required: true}
      target: {description: "What it names, as it is written into the link.", type: str, required: true}
  absent:
    description: Files that must not be there. Directories are refused.
    type: list
    elements: path
    default: []
  validate:
    description: Commands that must succeed on the staged copy of a changed file before anything is replaced.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: Which of O(files) to check., type: path, required: true}
      command:
        description: Arguments of the command; V(%s) becomes the staged copy, which has the same file name.
        type: list
        elements: str
        required: true
attributes:
  check_mode: {support: full, description: Says what would change.}
  diff_mode: {support: full, description: Shows the changed lines.}
"""

EXAMPLES = r"""
- name: Write the units
  quintet.django.write_files:
    directories:
      - {path: /etc/shop, mode: "0750"}
    files:
      - path: /etc/systemd/system/shop.service
        content: "{{ lookup('ansible.builtin.template', 'shop.service.j2') }}"
    validate:
      - path: /etc/systemd/system/shop.service
        command: [systemd-analyze, verify, "%s"]
"""

RETURN = r"""
changed_paths:
  description: The paths that were, or in check mode would be, created, replaced, removed or given other permissions.
  type: list
  elements: str
  returned: always
"""

import grp
import os
import pwd
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule


@dataclass(frozen=True)
class Wanted:
    """A directory (content is None) or a file as it should be."""

    path: Path
    owner: str
    group: str
    mode: int
    content: bytes | None

    @classmethod
    def of(cls, entry: dict[str, Any]) -> Wanted:
        """Build one from a module argument; raises ValueError for a mode that is not octal."""
        content = entry.get("content")
        return cls(
            path=Path(entry["path"]),
            owner=entry["owner"],
            group=entry["group"],
            mode=int(entry["mode"], 8),
            content=None if content is None else content.encode(),
        )


def user_number(name: str) -> int | None:
    """Return the user's number, or None while there is no such user (a run in check mode before it is made)."""
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def group_number(name: str) -> int | None:
    """Return the group's number, or None while there is no such group."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def has_permissions(wanted: Wanted) -> bool:
    """Say whether owner, group and mode are as wanted; a missing path has none."""
    try:
        found = wanted.path.lstat()
    except OSError:
        return False
    return (
        stat.S_IMODE(found.st_mode) == wanted.mode
        and found.st_uid == user_number(wanted.owner)
        and found.st_gid == group_number(wanted.group)
    )


def has_content(wanted: Wanted) -> bool:
    """Say whether a plain file (not a link) with the wanted content is there."""
    if wanted.path.is_symlink() or not wanted.path.is_file():
        return False
    return wanted.path.read_bytes() == wanted.content


def readable(path: Path) -> str:
    """Return a file's text for a diff, empty when there is none."""
    return path.read_text(errors="replace") if path.is_file() else ""


def names(link: Path, target: str) -> bool:
    """Say whether a link is there that names the target."""
    return link.is_symlink() and str(link.readlink()) == target


def point(link: Path, target: str) -> None:
    """Make a link beside its place and rename it there; raises OSError when a directory is in the way."""
    link.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    beside = link.with_name(f".{link.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)  # of a run that was killed
    beside.symlink_to(target)
    try:
        beside.rename(link)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def set_permissions(path: Path, wanted: Wanted) -> None:
    """Set owner, group and mode; raises ValueError naming an unknown user or group."""
    owner, group = user_number(wanted.owner), group_number(wanted.group)
    if owner is None or group is None:
        raise ValueError(
            f"{wanted.path}: should belong to {wanted.owner}:{wanted.group}, "
            "but there is no such user or group on this host. Create it first, or name another owner."
        )
    # By descriptor: a link that somebody put in the way is an error, never followed. A FIFO must not block.
    kind = os.O_DIRECTORY if wanted.content is None else 0
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | kind)
    try:
        # chown clears set-id bits, so the mode comes second.
        os.fchown(descriptor, owner, group)
        os.fchmod(descriptor, wanted.mode)
    finally:
        os.close(descriptor)


def stage(wanted: Wanted, directory: Path) -> Path:
    """Write the file under its own name into a directory of its own below `directory`."""
    own = Path(tempfile.mkdtemp(dir=directory))
    staged = own / wanted.path.name
    staged.write_bytes(wanted.content or b"")
    staged.chmod(0o600)
    return staged


def replace(wanted: Wanted) -> None:
    """Write beside the target, flush to disk, rename over it."""
    descriptor, name = tempfile.mkstemp(dir=wanted.path.parent, prefix=f".{wanted.path.name}.")
    beside = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(wanted.content or b"")
            handle.flush()
            os.fsync(handle.fileno())
        set_permissions(beside, wanted)
        beside.rename(wanted.path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def run() -> None:
    """Entry point."""
    permissions = {"owner": {"type": "str", "default": "root"}, "group": {"type": "str", "default": "root"}}
    module = AnsibleModule(
        argument_spec={
            "directories": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": {"type": "path", "required": True},
                    **permissions,
                    "mode": {"type": "str", "default": "0755"},
                },
            },
            "files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": {"type": "path", "required": True},
                    "content": {"type": "str", "required": True},
                    **permissions,
                    "mode": {"type": "str", "default": "0644"},
                },
            },
            "links": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {"path": {"type": "path", "required": True}, "target": {"type": "str", "required": True}},
            },
            "absent": {"type": "list", "elements": "path", "default": []},
            "validate": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": {"type": "path", "required": True},
                    "command": {"type": "list", "elements": "str", "required": True},
                },
            },
        },
        supports_check_mode=True,
    )
    try:
        result = bring_into_state(module)
    except (OSError, ValueError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


def bring_into_state(module: AnsibleModule) -> dict[str, Any]:
    """Compare, validate, then write; returns the module's result."""
    directories = [Wanted.of(entry) for entry in module.params["directories"]]
    files = [Wanted.of(entry) for entry in module.params["files"]]
    absent = [Path(path) for path in module.params["absent"]]
    refused = [str(path) for path in absent if path.is_dir() and not path.is_symlink()]
    if refused:
        raise ValueError(f"absent: {', '.join(refused)} is a directory. Name files only; nothing was changed.")

    new_content = [wanted for wanted in files if not has_content(wanted)]
    new_permissions = [wanted for wanted in directories + files if not has_permissions(wanted)]
    links = {Path(entry["path"]): entry["target"] for entry in module.params["links"]}
    new_links = [path for path, target in links.items() if not names(path, target)]
    unwanted = [path for path in absent if path.is_symlink() or path.exists()]
    # A file with new content is written with its permissions; it must not be listed twice.
    changed = list(
        dict.fromkeys([w.path for w in new_permissions] + [w.path for w in new_content] + new_links + unwanted)
    )
    result: dict[str, Any] = {"changed": bool(changed), "changed_paths": sorted(str(path) for path in changed)}
    # Private text stays out of the diff, as it must out of everything that is shown.
    result["diff"] = [
        {
            "before_header": str(wanted.path),
            "after_header": str(wanted.path),
            "before": readable(wanted.path),
            "after": (wanted.content or b"").decode(),
        }
        for wanted in new_content
        if wanted.mode & 0o004
    ]

    check(module, new_content)
    if module.check_mode:
        return result
    for wanted in directories:
        wanted.path.mkdir(mode=0o755, parents=True, exist_ok=True)
        if wanted in new_permissions:
            set_permissions(wanted.path, wanted)
    for wanted in new_content:
        replace(wanted)
    for wanted in new_permissions:
        if wanted.content is not None and wanted not in new_content:
            set_permissions(wanted.path, wanted)
    for path in new_links:
        point(path, links[path])
    for path in unwanted:
        path.unlink()
    return result


def check(module: AnsibleModule, new_content: list[Wanted]) -> None:
    """Run the validation commands on staged copies; fails the module with the command's words."""
    by_path = {wanted.path: wanted for wanted in new_content}
    checks = [entry for entry in module.params["validate"] if Path(entry["path"]) in by_path]
    if not checks:
        return
    with tempfile.TemporaryDirectory(prefix="quintet-") as name:
        for entry in checks:
            if module.check_mode and shutil.which(entry["command"][0]) is None:
                continue  # not installed yet: a real run installs it before this step
            staged = stage(by_path[Path(entry["path"])], Path(name))
            command = [argument.replace("%s", str(staged)) for argument in entry["command"]]
            code, out, err = module.run_command(command, expand_user_and_vars=False)
            if code != 0:
                said = (out + err).strip().replace(str(staged), entry["path"])
                module.fail_json(
                    msg=f"{entry['path']}: {' '.join(entry['command'])} refused the new content: {said}\n"
                    "Nothing was changed. Correct the variables that this file is made from."
                )


if __name__ == "__main__":
    run()
