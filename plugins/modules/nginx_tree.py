#!/usr/bin/python
# Copyright (c) 2026 The Quintet authors
# MIT License (see LICENSE)
"""Change Nginx's configuration as one tree: tested whole, swapped by a rename, reloaded."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nginx_tree
short_description: Changes Nginx's configuration as one tree
version_added: 0.1.0
author: The Quintet authors
description:
  - Takes the live tree C(/etc/nginx/quintet) with the given changes as the new tree, tests it whole with C(nginx -t), makes it
    the live one by renaming a link, and reloads Nginx if it runs.
  - When the test or the reload fails, the live tree stays, or is again, what it was.
  - C(/etc/nginx/nginx.conf) becomes a stub that includes C(quintet/nginx.conf). Files of the tree include each other as C(quintet/...).
  - Certificates are in C(/etc/nginx/quintet-tls/SITE/DIGEST/) and named by the tree. One that no tree names any more is removed
    with the last that did.
  - Nginx is reloaded too when it runs with another tree than the live one, for example because a run was killed before its reload.
options:
  files:
    description: Contents of files to have, by their paths in the tree.
    type: dict
    default: {}
  absent:
    description: Paths of files that must not be in the tree.
    type: list
    elements: str
    default: []
  companions:
    description: Files that are in the tree exactly as long as other files of it include certain ones.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: Its path in the tree., type: str, required: true}
      content: {description: Its content., type: str, required: true}
      of: {description: The paths of which another file must include one., type: list, elements: str, required: true}
  test:
    description: V(false) skips the test in check mode, for a tree that names files which only a real run writes.
    type: bool
    default: true
attributes:
  check_mode: {support: full, description: Tests the new tree beside the live one, if Nginx is installed, and says what would change.}
  diff_mode: {support: full, description: Shows the changed lines.}
"""

EXAMPLES = r"""
- name: Add a site
  quintet.django.nginx_tree:
    files:
      sites/shop.conf: "{{ lookup('ansible.builtin.template', 'site.conf.j2') }}"

- name: Take it away
  quintet.django.nginx_tree:
    absent: [sites/shop.conf]
"""

RETURN = r"""
changed_paths:
  description: Files that were written or removed.
  returned: success
  type: list
  elements: str
reloaded:
  description: Whether Nginx was reloaded.
  returned: success
  type: bool
tree:
  description: The directory of the live tree.
  returned: success
  type: str
"""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from ansible.module_utils.basic import AnsibleModule

STUB = """\
# Managed by Ansible, module quintet.django.nginx_tree. Changes here are lost.
# The configuration is in quintet/; what else is in this directory is not read unless quintet/ includes it.
include quintet/nginx.conf;
"""
ENTRY = "nginx.conf"
TREE_FILE = "tree.conf"
RELOAD_SECONDS = 20.0
LOCK_SECONDS = 60.0

Tree = dict[str, str]


class TreeError(Exception):
    """What a user must know: what is wrong, where, what to do."""


@dataclass(frozen=True)
class Layout:
    """Where things are; below other roots in tests."""

    etc: Path = Path("/etc/nginx")
    run: Path = Path("/run")
    error_log: Path = Path("/var/log/nginx/error.log")

    @property
    def main(self) -> Path:
        """Nginx's main file, our stub."""
        return self.etc / "nginx.conf"

    @property
    def link(self) -> Path:
        """The link that names the live tree."""
        return self.etc / "quintet"

    @property
    def trees(self) -> Path:
        """The directory of all trees; their names are numbers that only grow."""
        return self.etc / "quintet-trees"

    @property
    def certificates(self) -> Path:
        """The directory of keys and certificates, one a site in it, and one a certificate in that."""
        return self.etc / "quintet-tls"

    def marker(self, number: int) -> Path:
        """Return the log that Nginx holds open for as long as it runs with that tree."""
        return self.run / f"nginx-tree-{number}.log"


@dataclass(frozen=True)
class Companion:
    """A file that is in the tree as long as another file includes one of those that `of` names."""

    path: str
    content: str
    of: Sequence[str]

    def is_wanted(self, tree: Tree) -> bool:
        """Say whether a file of the tree, in which it is not itself, includes one of those."""
        return any(f"include quintet/{name};" in text for text in tree.values() for name in self.of)


@dataclass(frozen=True)
class Outcome:
    """What was, or in check mode would be, changed."""

    tree: str = ""
    changed_paths: list[str] = field(default_factory=list)
    diff: list[dict[str, str]] = field(default_factory=list)
    changed: bool = False
    reloaded: bool = False
    msg: str = ""


class Server(Protocol):
    """The Nginx of this host."""

    def installed(self) -> bool:
        """Say whether there is one."""

    def test(self, main: Path) -> tuple[bool, str]:
        """Test the configuration of that main file; return whether it is valid and what Nginx says."""

    def running(self) -> bool:
        """Say whether a master process runs."""

    def loaded(self) -> set[int]:
        """Return the numbers of the trees that the master process has open: one, or two during a reload."""

    def workers(self) -> set[int]:
        """Return the process ids of the master's children."""

    def reload(self) -> None:
        """Tell the master process to reload."""


class Nginx:
    """Debian's Nginx, by its process id file and /proc."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def installed(self) -> bool:
        """Say whether the program is there."""
        return shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin") is not None

    def test(self, main: Path) -> tuple[bool, str]:
        """Run nginx -t, which opens logs and tries to listen but touches no running server."""
        done = subprocess.run(
            ["nginx", "-t", "-c", str(main)],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin", "LC_ALL": "C.UTF-8"},
        )
        return done.returncode == 0, done.stderr

    def _master(self) -> int | None:
        try:
            number = int((self.layout.run / "nginx.pid").read_text())
            name = Path(f"/proc/{number}/comm").read_text().strip()
        except (OSError, ValueError):
            return None
        return number if name == "nginx" else None

    def running(self) -> bool:
        """Say whether the process id file names a living Nginx."""
        return self._master() is not None

    def loaded(self) -> set[int]:
        """Read the master's open files: what it really runs with, whoever reloaded or started it."""
        pattern = re.compile(re.escape(str(self.layout.run)) + r"/nginx-tree-(\d+)\.log( \(deleted\))?")
        numbers = set()
        for descriptor in Path(f"/proc/{self._master()}/fd").glob("*"):
            try:
                match = pattern.fullmatch(str(descriptor.readlink()))
            except OSError:
                continue
            if match:
                numbers.add(int(match[1]))
        return numbers

    def workers(self) -> set[int]:
        """Find the children of the master."""
        master = self._master()
        children = set()
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                # The name of the program, in parentheses, may hold spaces; the parent is the second field behind it.
                parent = int(status.read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue
            if parent == master:
                children.add(int(status.parent.name))
        return children

    def reload(self) -> None:
        """Send SIGHUP to the master."""
        master = self._master()
        if master is not None:
            os.kill(master, signal.SIGHUP)


def check_paths(paths: Sequence[str]) -> None:
    """Refuse paths that would leave the tree or replace what this module writes itself."""
    for path in paths:
        parts = PurePosixPath(path)
        if not path or parts.is_absolute() or ".." in parts.parts or str(parts) != path or path == TREE_FILE:
            raise TreeError(
                f"'{path}' is no path of a file in Nginx's tree.\n"
                f"Give paths relative to /etc/nginx/quintet, without '..', other than {TREE_FILE}, for example sites/shop.conf."
            )


def read_tree(directory: Path) -> Tree:
    """Return the contents of all files in a tree by their relative paths."""
    return {
        str(path.relative_to(directory)): path.read_bytes().decode("utf-8", "surrogateescape")
        for path in sorted(directory.rglob("*"))
        if path.is_file() and str(path.relative_to(directory)) != TREE_FILE
    }


def write_file(path: Path, content: str) -> None:
    """Write a new file, on disk when this returns, for all to read."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(content.encode("utf-8", "surrogateescape"))
        os.fchmod(file.fileno(), 0o644)
        os.fsync(file.fileno())


def replace_file(path: Path, content: str) -> None:
    """Put content in place of a file by one rename."""
    temporary = path.with_name(f".{path.name}.quintet")
    temporary.unlink(missing_ok=True)
    write_file(temporary, content)
    temporary.replace(path)


def live_number(layout: Layout) -> int | None:
    """Return the number of the live tree, or None if there is none.

    Raises TreeError if something that is no link stands in its place.
    """
    if layout.link.exists() and not layout.link.is_symlink():
        raise TreeError(
            f"{layout.link} is not a link.\n"
            "Quintet keeps its configuration behind a link of that name: move what is there away and run again."
        )
    if not layout.link.is_symlink():
        return None
    target = layout.link.readlink()
    if str(target.parent) != layout.trees.name or not target.name.isdecimal() or not layout.link.is_dir():
        return None
    return int(target.name)


def numbers(layout: Layout) -> set[int]:
    """Return the numbers of all trees on disk."""
    if not layout.trees.is_dir():
        return set()
    return {int(path.name) for path in layout.trees.iterdir() if path.name.isdecimal()}


def difference(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Return the paths whose contents differ, in order."""
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))


def stage_tree(directory: Path, tree: Tree, marker: Path) -> Path:
    """Write a main file and the tree beside it as Nginx will see them; return the main file."""
    directory.mkdir(mode=0o755)
    for path, content in tree.items():
        write_file(directory / "quintet" / path, content)
    write_file(
        directory / "quintet" / TREE_FILE,
        f"# By module quintet.django.nginx_tree: while Nginx has this open, it runs with this tree.\nerror_log {marker} emerg;\n",
    )
    write_file(directory / "nginx.conf", STUB)
    return directory / "nginx.conf"


def reason(line: str) -> str:
    """Return what a line of Nginx's log or output says, without its time, level and process."""
    return re.sub(r"^.*?\[emerg\] (\d+#\d+: )?", "", line)


def explain(output: str, stage: Path, tree: Tree) -> str:
    """Turn what nginx -t says about a staged tree into a message about the live one, with the line that it names."""
    text = output.replace(f"{stage}/quintet/", "quintet/").replace(f"{stage}/", "/etc/nginx/")
    lines = [reason(line) for line in text.splitlines() if "[emerg]" in line]
    message = "Nginx refuses the new configuration:\n" + "\n".join(lines or text.splitlines())
    match = re.search(r" in quintet/(\S+):(\d+)", message)
    if match and match[1] in tree:
        content = tree[match[1]].splitlines()
        number = int(match[2])
        message += "".join(
            f"\n  {at:>4} | {content[at - 1]}" for at in range(number - 1, number + 1) if 0 < at <= len(content)
        )
    return f"{message}\nCorrect the variable that this line is made from and run again. The live configuration was not touched."


def server_names(content: str) -> set[str]:
    """Return the host names of all server blocks in a file."""
    return {name for names in re.findall(r"^\s*server_name\s([^;]*);", content, re.M) for name in names.split()}


def conflict(output: str, tree: Tree) -> str | None:
    """Return a message if two sites claim one host name, of which Nginx would silently ignore one."""
    match = re.search(r'conflicting server name "([^"]*)" on (\S+), ignored', output)
    if not match:
        return None
    claims = [f"quintet/{path}" for path, content in tree.items() if match[1] in server_names(content)]
    return (
        f"The host name '{match[1]}' is claimed twice on {match[2]}, by {' and '.join(claims)}.\n"
        "Give each name to one site only; if it moves to another site, take it from the old one first. Nothing was changed."
    )


def emergencies(log: Path, offset: int) -> list[str]:
    """Return the lines of level emerg that were written to the log behind the offset in bytes."""
    try:
        with log.open("rb") as file:
            # A log that has been rotated since is shorter; then all of it is new.
            file.seek(offset if file.seek(0, os.SEEK_END) >= offset else 0)
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if "[emerg]" in line]


def size(path: Path) -> int:
    """Return a file's length in bytes, 0 if there is none."""
    return path.stat().st_size if path.exists() else 0


@dataclass(frozen=True)
class ReloadFailure:
    """Why a reload did not happen; final if Nginx has given it up, else it may still come."""

    reason: str
    final: bool


def reload_and_wait(
    server: Server, layout: Layout, number: int, seconds: float = RELOAD_SECONDS
) -> ReloadFailure | None:
    """Reload Nginx and wait until new workers run with that tree; return what went wrong, or None.

    A reload has no answer: Nginx keeps its old configuration when, for example, a port is taken, and says so in its log only.
    """
    old_workers, offset = server.workers(), size(layout.error_log)
    server.reload()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if number in server.loaded() and server.workers() - old_workers:
            return None
        if not server.running():
            return ReloadFailure("Nginx has ended.", final=True)
        lines = emergencies(layout.error_log, offset)
        # It tries five times to listen on an address in use (98), half a second apart, and then says so in another line.
        if any(not re.search(r"bind\(\) to \S+ failed \(98:", line) for line in lines):
            return ReloadFailure("\n".join(dict.fromkeys(map(reason, lines))), final=True)
        time.sleep(0.05)
    text = f"No new worker process within {seconds:.0f} seconds; {layout.error_log} may say why."
    return ReloadFailure(text, final=False)


def point_link(layout: Layout, number: int | None) -> None:
    """Make that tree the live one by one rename, or none of them."""
    if number is None:
        layout.link.unlink(missing_ok=True)
        return
    temporary = layout.trees / ".link"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(f"{layout.trees.name}/{number}")
    temporary.replace(layout.link)


def drop_old(layout: Layout, keep: set[int], loaded: set[int]) -> None:
    """Remove all trees but those to keep, their certificates, and the markers of all trees that Nginx doesn't run with."""
    gone = numbers(layout) - keep
    certificates = named_certificates(layout, gone) - named_certificates(layout, numbers(layout) - gone)
    for number in gone:
        shutil.rmtree(layout.trees / str(number))
    for certificate in certificates:
        # One that the site itself has replaced may be gone.
        shutil.rmtree(layout.certificates / certificate, ignore_errors=True)
    for marker in set(layout.run.glob("nginx-tree-*.log")) - {layout.marker(number) for number in loaded}:
        marker.unlink(missing_ok=True)


def named_certificates(layout: Layout, trees: set[int]) -> set[str]:
    """Return the certificates that trees name, as SITE/DIGEST."""
    pattern = re.compile(re.escape(str(layout.certificates)) + r"/([a-z0-9_]+/[0-9a-f]{16})/")
    return {
        name
        for number in trees
        for text in read_tree(layout.trees / str(number)).values()
        for name in pattern.findall(text)
    }


@contextmanager
def locked(layout: Layout) -> Iterator[None]:
    """Keep other runs out; the kernel opens the lock when this process ends, however it ends."""
    layout.trees.mkdir(mode=0o755, parents=True, exist_ok=True)
    descriptor = os.open(layout.trees, os.O_RDONLY | os.O_DIRECTORY)
    end = time.monotonic() + LOCK_SECONDS
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise TreeError(
                        f"Another run has been changing Nginx's configuration for {LOCK_SECONDS:.0f} seconds ({layout.trees} is locked).\n"
                        f"Wait for it, or find it with 'fuser -v {layout.trees}', and run again."
                    ) from None
                time.sleep(0.2)
        yield
    finally:
        os.close(descriptor)


def test_stage(directory: Path, tree: Tree, layout: Layout, server: Server, number: int) -> None:
    """Write the tree into a new directory and let Nginx test it; raise TreeError, with nothing left behind, if it refuses."""
    try:
        valid, output = server.test(stage_tree(directory, tree, layout.marker(number)))
        problem = conflict(output, tree) if valid else explain(output, directory, tree)
        if problem:
            raise TreeError(problem)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    finally:
        layout.marker(number).unlink(missing_ok=True)


def with_changes(before: Tree, files: Tree, absent: Sequence[str], companions: Sequence[Companion]) -> Tree:
    """Return the tree with files, without those that must be absent, and with the companions of what is in it then."""
    after = {path: content for path, content in {**before, **files}.items() if path not in absent}
    for companion in companions:
        after.pop(companion.path, None)
        if companion.is_wanted(after):
            after[companion.path] = companion.content
    return after


def apply_changes(
    layout: Layout,
    server: Server,
    files: Tree,
    absent: Sequence[str],
    check: bool,
    companions: Sequence[Companion] = (),
    test: bool = True,
) -> Outcome:
    """Bring the live tree to what is wanted; in check mode say what that would change.

    Raises TreeError, with the live tree as it was, for whatever Nginx does not take.
    """
    check_paths([*files, *absent, *(companion.path for companion in companions)])
    current = live_number(layout)
    before = read_tree(layout.link) if current is not None else {}
    after = with_changes(before, files, absent, companions)
    changed_paths = difference(before, after)
    tree = str(layout.trees / str(current)) if current is not None else ""
    if current is None and not changed_paths:
        return Outcome(msg="There is no tree, and nothing to put into one.")

    old_main = layout.main.read_bytes().decode("utf-8", "surrogateescape") if layout.main.exists() else None
    running = server.running()
    stale = running and server.loaded() != {current}
    if not changed_paths and old_main == STUB and not stale:
        return Outcome(tree=tree)

    headers = [(f"{layout.link}/{path}", before.get(path, ""), after.get(path, "")) for path in changed_paths]
    if old_main != STUB:
        headers.append((str(layout.main), old_main or "", STUB))
    outcome = Outcome(
        tree=tree,
        changed=True,
        changed_paths=[name for name, _, _ in headers],
        diff=[{"before_header": name, "after_header": name, "before": old, "after": new} for name, old, new in headers],
        reloaded=running,
        msg="" if headers else "Nginx ran with another tree than the live one.",
    )
    number = max(numbers(layout) | server.loaded() | {0}) + 1
    if check:
        # On a bare host, or before the host's own files are there, there is nothing to test with.
        if test and server.installed() and ENTRY in after:
            with tempfile.TemporaryDirectory() as directory:
                test_stage(Path(directory) / "stage", after, layout, server, number)
        return outcome

    if not server.installed() or ENTRY not in after:
        raise TreeError(
            f"{'Nginx is not installed' if not server.installed() else f'{layout.link}/{ENTRY} is missing'} on this host.\n"
            "Apply the role quintet.django.nginx (its main entry) to the host before its sites."
        )
    stage = layout.trees / ".stage"
    shutil.rmtree(stage, ignore_errors=True)  # of a run that was killed
    test_stage(stage, after, layout, server, number)
    (stage / "quintet").rename(layout.trees / str(number))
    shutil.rmtree(stage)
    point_link(layout, number)
    if old_main != STUB:
        replace_file(layout.main, STUB)

    failure = reload_and_wait(server, layout, number) if running else None
    if failure:
        if old_main not in (STUB, None):
            replace_file(layout.main, str(old_main))
        point_link(layout, current)
        if not failure.final:
            server.reload()
        drop_old(layout, keep=numbers(layout) - {number}, loaded=server.loaded())
        raise TreeError(
            f"Nginx did not take the new configuration at its reload:\n{failure.reason}\n"
            "Remove the cause (a port in use: 'ss -tlnp' names its owner) and run again. The old configuration was put back."
        )
    drop_old(layout, keep={number, current or number}, loaded={number})
    return Outcome(**{**vars(outcome), "tree": str(layout.trees / str(number))})


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "files": {"type": "dict", "default": {}},
            "absent": {"type": "list", "elements": "str", "default": []},
            "companions": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": {"type": "str", "required": True},
                    "content": {"type": "str", "required": True},
                    "of": {"type": "list", "elements": "str", "required": True},
                },
            },
            "test": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)
    layout = Layout()
    arguments: dict[str, Any] = {
        "layout": layout,
        "server": Nginx(layout),
        "files": {str(path): str(content) for path, content in module.params["files"].items()},
        "absent": module.params["absent"],
        "check": module.check_mode,
        "companions": [Companion(**companion) for companion in module.params["companions"]],
        "test": module.params["test"],
    }
    try:
        if module.check_mode:
            outcome = apply_changes(**arguments)
        else:
            with locked(layout):
                outcome = apply_changes(**arguments)
    except TreeError as error:
        module.fail_json(msg=str(error))
    result = vars(outcome)
    module.exit_json(**{key: result[key] for key in result if key != "diff" or module._diff})


if __name__ == "__main__":
    main()
