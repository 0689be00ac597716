#!/usr/bin/python
# Copyright (c) 2026 The Quintet authors
# MIT License (see LICENSE)
"""Keep an app's environment and secrets on a host as immutable, numbered revisions."""

from __future__ import annotations

DOCUMENTATION = r"""
module: app_environment
short_description: Keeps an app's environment and secrets as numbered revisions
version_added: 0.1.0
author: The Quintet authors
description:
  - A revision is written once and never changed, so that every generation can be started with the environment it was built for.
  - Content that an earlier revision already has gives that revision's number again.
  - Secrets without a value are generated once and kept in C(secrets.json).
options:
  directory: {description: "The app's directory, for example /etc/quintet/shop.", type: path, required: true}
  environment: {description: Plain environment variables., type: dict, default: {}}
  build_environment: {description: "More variables, for the build alone.", type: dict, default: {}}
  secrets: {description: Secret values by name. An empty one is generated once., type: dict, default: {}}
  generated_elsewhere:
    description: Values that another host of the app generated for empty secrets. They are used and kept here, too.
    type: dict
    default: {}
  secrets_as:
    description: Whether secrets become files for LoadCredential= or variables of the environment file.
    type: str
    choices: [credentials, environment]
    default: credentials
attributes:
  check_mode: {support: full, description: Says which revision there would be.}
notes:
  - The result holds the secrets. Use no_log.
"""

EXAMPLES = r"""
- name: Keep the environment
  quintet.django.app_environment:
    directory: /etc/quintet/shop
    environment: {LOG_LEVEL: INFO}
    secrets: {SECRET_KEY: ""}
  no_log: true
"""

RETURN = r"""
revision: {description: Number of the revision with this content., type: int, returned: success}
secrets: {description: "All secrets with their values, given or generated.", type: dict, returned: success}
conflicts:
  description: Names whose value this host once generated itself and another host has otherwise. Then nothing was written.
  type: list
  elements: str
  returned: success
"""

import json
import os
import secrets as random_source
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

Files = dict[str, str]

# Long enough for Django's check of SECRET_KEY (50 characters) and, at six bits a character, beyond any search.
GENERATED_LENGTH_BYTES = 48

# A value for builds; visibly none, and as long as a real one.
PLACEHOLDER = "placeholder-of-a-build-" + "0" * 41


def environment_line(name: str, value: str) -> str:
    r"""Return one line for systemd's EnvironmentFile=, in double quotes.

    Inside them systemd takes a backslash before each of " \ ` $ as that character (systemd.exec(5)).
    """
    quoted = "".join("\\" + character if character in '"\\`$' else character for character in value)
    return f'{name}="{quoted}"\n'


def environment_text(values: dict[str, str]) -> str:
    """Return a whole environment file, sorted by name."""
    return "".join(environment_line(name, values[name]) for name in sorted(values))


def revision_files(
    environment: dict[str, str], build_environment: dict[str, str], values: dict[str, str], secrets_as: str
) -> Files:
    """Return the files of a revision by relative path."""
    as_files = secrets_as == "credentials"
    visible = environment if as_files else {**environment, **values}
    placeholders = dict.fromkeys(values, PLACEHOLDER)
    files = {
        "environment": environment_text(visible),
        "build.environment": environment_text({**placeholders, **environment, **build_environment}),
    }
    if as_files:
        files |= {f"credentials/{name}": value for name, value in values.items()}
    return files


def read_revision(directory: Path) -> Files:
    """Return a revision's files by relative path."""
    return {
        str(path.relative_to(directory)): path.read_text() for path in sorted(directory.rglob("*")) if path.is_file()
    }


def find_revision(revisions: Path, files: Files) -> tuple[int | None, int]:
    """Return the number of the newest revision with this content, or None, and the next free number."""
    numbers = sorted((int(path.name) for path in revisions.glob("[0-9]*") if path.name.isdigit()), reverse=True)
    same = next((number for number in numbers if read_revision(revisions / str(number)) == files), None)
    return same, (numbers[0] if numbers else 0) + 1


def write_private(path: Path, text: str) -> None:
    """Write a file that only root can read, at once or not at all."""
    descriptor, name = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(descriptor, "w") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    Path(name).rename(path)


def write_revision(revisions: Path, number: int, files: Files) -> None:
    """Write a revision beside its place and rename it there, so that a killed run leaves no half of one."""
    staged = Path(tempfile.mkdtemp(dir=revisions, prefix=".new-"))
    for name, text in files.items():
        path = staged / name
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_private(path, text)
    staged.rename(revisions / str(number))


def conflicting(directory: Path, wanted: dict[str, str], elsewhere: dict[str, str]) -> list[str]:
    """Return the names of empty secrets that this host has generated otherwise than the other host."""
    kept = read_generated(directory)
    return sorted(n for n, value in wanted.items() if not value and n in kept and kept[n] != elsewhere.get(n, kept[n]))


def read_generated(directory: Path) -> dict[str, str]:
    """Return what was generated once, by name."""
    store = directory / "secrets.json"
    kept: dict[str, str] = json.loads(store.read_text()) if store.is_file() else {}
    return kept


def with_generated(
    directory: Path, wanted: dict[str, str], elsewhere: dict[str, str]
) -> tuple[dict[str, str], dict[str, str], bool]:
    """Return all values by name, what secrets.json must hold (what was generated, now or once), and if that is new."""
    kept = read_generated(directory)
    empty = [name for name, value in wanted.items() if not value]
    known = {**kept, **{name: elsewhere[name] for name in empty if name in elsewhere}}
    generated = {**known, **{n: random_source.token_urlsafe(GENERATED_LENGTH_BYTES) for n in empty if n not in known}}
    return {name: value or generated[name] for name, value in wanted.items()}, generated, generated != kept


def as_text(values: dict[str, Any]) -> dict[str, str]:
    """Return values as environment variables have them: true and false in lower case, as YAML writes them."""
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in values.items()}


def run() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "environment": {"type": "dict", "default": {}},
            "build_environment": {"type": "dict", "default": {}},
            "secrets": {"type": "dict", "default": {}, "no_log": False},
            "generated_elsewhere": {"type": "dict", "default": {}},
            "secrets_as": {"type": "str", "choices": ["credentials", "environment"], "default": "credentials"},
        },
        supports_check_mode=True,
    )
    directory = Path(module.params["directory"])
    try:
        conflicts = conflicting(directory, as_text(module.params["secrets"]), module.params["generated_elsewhere"])
        if conflicts:
            module.exit_json(changed=False, revision=0, secrets={}, conflicts=conflicts)
        values, generated, is_new = with_generated(
            directory, as_text(module.params["secrets"]), module.params["generated_elsewhere"]
        )
        files = revision_files(
            as_text(module.params["environment"]),
            as_text(module.params["build_environment"]),
            values,
            module.params["secrets_as"],
        )
        revisions = directory / "revisions"
        same, following = find_revision(revisions, files)
        if not module.check_mode:
            revisions.mkdir(mode=0o700, parents=True, exist_ok=True)
            if is_new:
                # Before the revision that uses them: what was generated must never be generated again.
                write_private(directory / "secrets.json", json.dumps(generated, indent=2, sort_keys=True) + "\n")
            if same is None:
                write_revision(revisions, following, files)
    except (OSError, ValueError) as error:
        module.fail_json(msg=f"{directory}: the app's environment could not be kept: {error}.")
    module.exit_json(
        changed=same is None or is_new, revision=following if same is None else same, secrets=values, conflicts=[]
    )


if __name__ == "__main__":
    run()
