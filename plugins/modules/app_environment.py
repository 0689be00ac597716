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
  - >-
    When the value of a secret that O(fallbacks) or O(overlaps) names changes, whoever changed it, the old one is kept in
    C(rotations.json) until its time is over. The first run after that drops it, unless the generation that serves still uses it.
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
  fallbacks:
    description: >-
      Secrets whose old values the app goes on accepting. It gets them as one more secret, NAME_FALLBACKS, with commas between them,
      the newest first; so one with a comma in it is not kept.
    type: list
    elements: str
    default: []
  overlaps:
    description: Secrets whose old values somebody else goes on accepting, such as the password of the channel layer.
    type: list
    elements: str
    default: []
  alternating:
    description: >-
      Secrets whose values two logins accept in turn, since of one login one password is good. An old value overlaps like those of
      O(overlaps), and a new one takes the login that no value still good has. Where there is none, nothing is written and RV(blocked)
      says so. What serves without such a secret leaves an empty old value, without a login.
    type: list
    elements: str
    default: []
  composed:
    description: >-
      Secrets that are made of another, by their names. C(secret) names that one. In C(text), C({value}) is its value, percent-encoded as
      in URLs, and C({login}) is 1 or 2, the login that has it, for one of O(alternating).
    type: dict
    default: {}
  fallback_days: {description: "How long an old value is kept, in days.", type: int, default: 15}
  rotate:
    description: >-
      Generated secrets that get a new value. One whose newest value the generation that serves does not use yet is not made anew:
      that rotation has not come to its end.
    type: list
    elements: str
    default: []
  retire:
    description: Secrets whose old values are dropped before their time.
    type: list
    elements: str
    default: []
  in_use:
    description: The generation.json of the generation that serves; it need not be there.
    type: path
  serving_elsewhere:
    description: The RV(serving) of the app's other hosts. What one of them uses is not dropped.
    type: list
    elements: dict
    default: []
  rotations_elsewhere:
    description: The RV(rotations) of the host that generated what O(generated_elsewhere) has. They are used and kept here, too.
    type: dict
    default: {}
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
secrets: {description: "All secrets with their values, given or generated, old ones among them.", type: dict, returned: success}
names: {description: "The names of RV(secrets), in order.", type: list, elements: str, returned: success}
rotations:
  description: >-
    By name the value of a secret, its old ones with the time until which they are kept, and the digests of all earlier ones. Where they
    alternate, with the login of each value (1 or 2, 0 for none).
  type: dict
  returned: success
serving:
  description: Digests of the values of O(alternating) that the generation that serves has, by name. Nothing where none serves.
  type: dict
  returned: success
blocked:
  description: Names of O(alternating) that can have no new value yet, with the time until which an old one is kept.
  type: dict
  returned: success
rotated: {description: "Names of O(rotate) that have a new value now.", type: list, elements: str, returned: success}
used:
  description: Names of O(retire) with an old value that stays, since the generation that serves uses it.
  type: list
  elements: str
  returned: success
unused:
  description: >-
    Names of O(overlaps) and O(alternating) whose value the generation that serves does not use yet. Who accepts it is to be told before
    a switch.
  type: list
  elements: str
  returned: success
conflicts:
  description: Names whose value this host once generated itself and another host has otherwise. Then nothing was written.
  type: list
  elements: str
  returned: success
"""

import hashlib
import json
import os
import re
import secrets as random_source
import tempfile
import urllib.parse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

Files = dict[str, str]
# By the name of a secret: {"value": its value, "old": [{"value", "until"}], the newest first, "was": [SHA-256 of earlier values]}.
# Where values alternate, value and old ones have "login", too.
Rotations = dict[str, Any]
Used = Callable[[str, str], bool]

LOGINS = (1, 2)

# Long enough for Django's check of SECRET_KEY (50 characters) and, at six bits a character, beyond any search.
GENERATED_LENGTH_BYTES = 48

# Of what is not in its place yet. The host command (prune) removes what a killed run has left under such a name.
STAGED_PREFIX = ".new-"

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
    environment: dict[str, str],
    build_environment: dict[str, str],
    values: dict[str, str],
    placeholders: dict[str, str],
    secrets_as: str,
) -> Files:
    """Return the files of a revision by relative path."""
    as_files = secrets_as == "credentials"
    visible = environment if as_files else {**environment, **values}
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
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=STAGED_PREFIX)
    with os.fdopen(descriptor, "w") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    Path(name).rename(path)


def write_revision(revisions: Path, number: int, files: Files) -> None:
    """Write a revision beside its place and rename it there, so that a killed run leaves no half of one."""
    staged = Path(tempfile.mkdtemp(dir=revisions, prefix=STAGED_PREFIX))
    for name, text in files.items():
        path = staged / name
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_private(path, text)
    staged.rename(revisions / str(number))


def digest(value: str) -> str:
    """Return the SHA-256 of a value, by which it is known again once it is dropped."""
    return hashlib.sha256(value.encode()).hexdigest()


def conflicting(
    kept: dict[str, str], wanted: dict[str, str], elsewhere: dict[str, str], rotations: Rotations
) -> list[str]:
    """Return the names of empty secrets that this host has generated otherwise than the other host ever had them."""
    return sorted(
        name
        for name, value in wanted.items()
        if not value
        and name in kept
        and kept[name] != elsewhere.get(name, kept[name])
        and digest(kept[name]) not in rotations.get(name, {}).get("was", [])
    )


def read_json(path: Path) -> dict[str, Any]:
    """Return what one of the app's stores holds; nothing before its first time."""
    kept: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return kept


def with_generated(
    kept: dict[str, str], wanted: dict[str, str], elsewhere: dict[str, str], anew: Iterable[str] = ()
) -> tuple[dict[str, str], dict[str, str]]:
    """Return all values by name, and what secrets.json must hold: what was generated, now or once."""
    empty = [name for name, value in wanted.items() if not value]
    known = {name: value for name, value in kept.items() if name not in set(anew)}
    known |= {name: elsewhere[name] for name in empty if name in elsewhere}
    generated = {**known, **{n: random_source.token_urlsafe(GENERATED_LENGTH_BYTES) for n in empty if n not in known}}
    return {name: value or generated[name] for name, value in wanted.items()}, generated


def time_stamp(moment: datetime) -> str:
    """Return a moment in UTC as text that sorts by time."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def moved_on(
    kept: Rotations, values: dict[str, str], with_old: Iterable[str], anew: Iterable[str], until: str
) -> Rotations:
    """Return the rotations once the secrets have these values: one that has changed leaves its old value behind.

    `with_old` names those whose old values are kept; of others that were ever made `anew`, their digests alone.
    """
    old_kept = set(with_old)
    rotations: Rotations = {}
    for name in sorted((old_kept | set(kept) | set(anew)) & set(values)):
        before = kept.get(name, {"value": values[name], "old": [], "was": []})
        old = [entry for entry in before["old"] if entry["value"] != values[name]]
        was = list(before["was"])
        if before["value"] != values[name]:
            was.append(digest(before["value"]))
            old = [{"value": before["value"], "until": until}, *old]
        rotations[name] = {"value": values[name], "old": old if name in old_kept else [], "was": was}
    return rotations


def without_ended(rotations: Rotations, now: str, retire: Iterable[str], used: Used) -> Rotations:
    """Return the rotations without the old values whose time is over; what the generation that serves `used` stays."""
    retired = set(retire)
    return {
        name: {
            **rotation,
            "old": [
                entry
                for entry in rotation["old"]
                if used(name, entry["value"]) or (name not in retired and entry["until"] > now)
            ],
        }
        for name, rotation in rotations.items()
    }


class BlockedError(Exception):
    """A secret can have no new value yet: each of its logins has one that is still good, the first of them until `until`."""

    def __init__(self, name: str, until: str) -> None:
        """Keep which secret it is, and when the next of its logins is free."""
        super().__init__(name)
        self.name = name
        self.until = until


def free_login(name: str, old: list[dict[str, Any]]) -> int:
    """Return a login that no old value has; raises BlockedError."""
    taken = {entry["login"] for entry in old}
    free = [login for login in LOGINS if login not in taken]
    if not free:
        raise BlockedError(name, min(entry["until"] for entry in old if entry["login"]))
    return free[0]


def alternated(
    kept: Rotations, values: dict[str, str], names: Iterable[str], until: str, *, is_serving: bool
) -> Rotations:
    """Return the rotations of secrets that two logins accept in turn; raises BlockedError.

    One that is not among the values any more, or was not, counts as empty. `kept` has no old value whose time is over.
    """
    rotations: Rotations = {}
    for name in names:
        known = kept.get(name, {})
        if name not in values and "login" not in known:
            continue
        value = values.get(name, "")
        before: dict[str, Any] = known if "login" in known else {"value": "", "old": [], "was": [], "login": 0}
        if before["value"] == value:
            rotations[name] = before
            continue
        left = {"value": before["value"], "login": before["login"], "until": until}
        old = [entry for entry in before["old"] if entry["value"] != before["value"]]
        # A first generation of all leaves none behind that was without the secret.
        if before["value"] or is_serving:
            old = [left, *old]
        # One that is still good has its login already.
        again = next((entry["login"] for entry in old if entry["value"] == value), None)
        login = again if again is not None else free_login(name, old) if value else 0
        rotations[name] = {
            "value": value,
            "login": login,
            "old": [entry for entry in old if entry["value"] != value],
            "was": [*before["was"], *([digest(before["value"])] if before["value"] else [])],
        }
    return rotations


def composed_values(composed: dict[str, Any], values: dict[str, str], rotations: Rotations) -> dict[str, str]:
    """Return the secrets that are made of others."""
    return {
        name: part["text"].format(
            value=urllib.parse.quote(values[part["secret"]], safe=""),
            login=rotations.get(part["secret"], {}).get("login", 0),
        )
        for name, part in composed.items()
    }


def fallback_values(rotations: Rotations, names: Iterable[str]) -> dict[str, str]:
    """Return what the app gets of the old values, by NAME_FALLBACKS; nothing for a secret that has none."""
    old = {name: [entry["value"] for entry in rotations.get(name, {"old": []})["old"]] for name in names}
    return {f"{name}_FALLBACKS": ",".join(values) for name, values in old.items() if values}


class Serving:
    """The secrets of the generation that serves on this host, and what is known of the other hosts' ones."""

    def __init__(self, revisions: Path, in_use: Path, elsewhere: Iterable[dict[str, str]] = ()) -> None:
        """Read the revision of the generation that `in_use`, a generation.json, tells of."""
        self._files: Files | None = None
        self._elsewhere = [told for told in elsewhere if told]
        if in_use.is_file():
            self._files = read_revision(revisions / str(json.loads(in_use.read_text())["revision"]))

    @property
    def is_there(self) -> bool:
        """Say whether any generation serves."""
        return self._files is not None or bool(self._elsewhere)

    def has(self, name: str, value: str) -> bool:
        """Say whether a generation that serves has a secret with a value; with the empty one, whether one is without it."""
        return self._value(name) == value or any(told.get(name) == digest(value) for told in self._elsewhere)

    def digests(self, names: Iterable[str]) -> dict[str, str]:
        """Return for the other hosts what this one has; nothing where none serves."""
        values = {name: self._value(name) for name in names}
        return {name: digest(value) for name, value in values.items() if value is not None}

    def _value(self, name: str) -> str | None:
        if self._files is None:
            return None
        lines = self._files.get("environment", "").splitlines()
        variable = next((line for line in lines if line.startswith(f'{name}="')), f'{name}=""')
        return self._files.get(f"credentials/{name}", re.sub(r"\\(.)", r"\1", variable[len(name) + 2 : -1]))


@dataclass(frozen=True)
class Secrets:
    """The secrets as they must be, and what became of what was asked for."""

    values: dict[str, str]
    placeholders: dict[str, str]
    generated: dict[str, str]
    rotations: Rotations
    rotated: list[str]
    used: list[str]
    unused: list[str]


def decide(parameters: dict[str, Any], kept: dict[str, str], rotations: Rotations, now: datetime) -> Secrets:
    """Return the secrets for the module's parameters and what the host has kept; changes nothing.

    `kept` is what was generated once, `rotations` what rotations.json says; `now` decides which old values go.
    """
    wanted, elsewhere = as_text(parameters["secrets"]), parameters["generated_elsewhere"]
    now_serving = serving(parameters)
    has = now_serving.has
    # A rotation whose change failed, or was rolled back, goes on: a third value would help nobody.
    rotated = [
        name
        for name in parameters["rotate"]
        if wanted.get(name) == "" and not (name in kept and was_rotated(rotations, name) and not has(name, kept[name]))
    ]
    values, generated = with_generated(kept, wanted, elsewhere, rotated)
    if parameters["rotations_elsewhere"]:
        rotations = parameters["rotations_elsewhere"]
    else:
        until = time_stamp(now + timedelta(days=parameters["fallback_days"]))
        recorded = {
            **{name: {"value": kept[name], "old": [], "was": []} for name in rotated if name in kept},
            **rotations,
        }
        alternating = set(parameters["alternating"])
        # Before, too, since it frees a login.
        recorded = without_ended(recorded, time_stamp(now), parameters["retire"], has)
        rotations = {
            **moved_on(
                {name: rotation for name, rotation in recorded.items() if name not in alternating},
                values,
                {*parameters["fallbacks"], *parameters["overlaps"]} - alternating,
                {*rotated} - alternating,
                until,
            ),
            **alternated(recorded, values, sorted(alternating), until, is_serving=now_serving.is_there),
        }
        rotations = without_ended(rotations, time_stamp(now), parameters["retire"], has)
    rotations = without_commas(rotations, parameters["fallbacks"])
    values |= fallback_values(rotations, parameters["fallbacks"])
    composed = parameters["composed"]
    placeholders = dict.fromkeys(values, PLACEHOLDER)
    return Secrets(
        values={**values, **composed_values(composed, values, rotations)},
        placeholders={**placeholders, **composed_values(composed, placeholders, rotations)},
        generated=generated,
        rotations=rotations,
        rotated=rotated,
        used=sorted(name for name in parameters["retire"] if rotations.get(name, {}).get("old")),
        unused=sorted(
            name
            for name in {*parameters["overlaps"], *parameters["alternating"]}
            if name in values and not has(name, values[name])
        ),
    )


def serving(parameters: dict[str, Any]) -> Serving:
    """Return what serves, on this host and on the others."""
    in_use = Path(parameters["in_use"] or "/nonexistent")
    return Serving(Path(parameters["directory"]) / "revisions", in_use, parameters["serving_elsewhere"])


def was_rotated(rotations: Rotations, name: str) -> bool:
    """Say whether a secret has ever had another value."""
    return bool(rotations.get(name, {}).get("was"))


def without_commas(rotations: Rotations, names: Iterable[str]) -> Rotations:
    """Return the rotations without old values that a list with commas can't hold."""
    listed = set(names)
    return {
        name: {
            **rotation,
            "old": [entry for entry in rotation["old"] if name not in listed or "," not in entry["value"]],
        }
        for name, rotation in rotations.items()
    }


def as_text(values: dict[str, Any]) -> dict[str, str]:
    """Return values as environment variables have them: true and false in lower case, as YAML writes them."""
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in values.items()}


def run() -> None:
    """Entry point."""
    names = {"type": "list", "elements": "str", "default": []}
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "environment": {"type": "dict", "default": {}},
            "build_environment": {"type": "dict", "default": {}},
            "secrets": {"type": "dict", "default": {}, "no_log": False},
            "generated_elsewhere": {"type": "dict", "default": {}},
            "secrets_as": {"type": "str", "choices": ["credentials", "environment"], "default": "credentials"},
            "fallbacks": names,
            "overlaps": names,
            "alternating": names,
            "composed": {"type": "dict", "default": {}},
            "fallback_days": {"type": "int", "default": 15},
            "rotate": names,
            "retire": names,
            "in_use": {"type": "path"},
            "serving_elsewhere": {"type": "list", "elements": "dict", "default": []},
            "rotations_elsewhere": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    directory = Path(module.params["directory"])
    try:
        result = keep(module.params, directory, write=not module.check_mode)
    except (OSError, ValueError) as error:
        module.fail_json(msg=f"{directory}: the app's environment could not be kept: {error}.")
    module.exit_json(**result)


def keep(parameters: dict[str, Any], directory: Path, *, write: bool) -> dict[str, Any]:
    """Bring the app's directory into the wanted state, or only say what that would be; returns the module's result."""
    kept = read_json(directory / "secrets.json")
    rotations = read_json(directory / "rotations.json")
    conflicts = conflicting(
        kept,
        as_text(parameters["secrets"]),
        parameters["generated_elsewhere"],
        parameters["rotations_elsewhere"],
    )
    told = {"conflicts": conflicts, "blocked": {}, "serving": serving(parameters).digests(parameters["alternating"])}
    nothing = {
        **{"changed": False, "revision": 0, "secrets": {}, "names": [], "rotations": {}, "rotated": [], "used": []},
        **{"unused": []},
        **told,
    }
    if conflicts:
        return nothing
    try:
        wanted = decide(parameters, kept, rotations, datetime.now(UTC))
    except BlockedError as blocked:
        return {**nothing, "blocked": {blocked.name: blocked.until}}
    files = revision_files(
        as_text(parameters["environment"]),
        as_text(parameters["build_environment"]),
        wanted.values,
        wanted.placeholders,
        parameters["secrets_as"],
    )
    revisions = directory / "revisions"
    same, following = find_revision(revisions, files)
    if write:
        revisions.mkdir(mode=0o700, parents=True, exist_ok=True)
        # In this order: what was generated must never be generated again, and a value that rotations.json does not know yet is
        # seen by the next run to have changed.
        if wanted.generated != kept:
            write_store(directory / "secrets.json", wanted.generated)
        if wanted.rotations != rotations:
            write_store(directory / "rotations.json", wanted.rotations)
        if same is None:
            write_revision(revisions, following, files)
    return {
        "changed": same is None or wanted.generated != kept or wanted.rotations != rotations,
        "revision": following if same is None else same,
        "secrets": wanted.values,
        "names": sorted(wanted.values),
        "rotations": wanted.rotations,
        "rotated": wanted.rotated,
        "used": wanted.used,
        "unused": wanted.unused,
        **told,
    }


def write_store(path: Path, content: dict[str, Any]) -> None:
    """Write one of the app's stores."""
    write_private(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    run()
