# Copyright (c) 2026 The Quintet authors
# MIT License (see LICENSE)
"""Filters for the text of systemd units: the sandbox, environment variables, quoted words."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

Value = str | Sequence[str]

# What the services of a web application can do without; each was tried with Gunicorn, Daphne and Django on systemd 252 and 257.
SANDBOX: dict[str, Value] = {
    # No set-uid program (su, sudo) gives rights.
    "NoNewPrivileges": "yes",
    # None of root's powers, not even for a process that became root inside.
    "CapabilityBoundingSet": "",
    "AmbientCapabilities": "",
    # What it writes is for nobody else to read.
    "UMask": "0077",
    # A /tmp of its own: no files of others to read, nor names that others wait for to take.
    "PrivateTmp": "yes",
    # No disks, consoles or memory devices: null, zero, random and the like are enough.
    "PrivateDevices": "yes",
    # Other users of the host do not exist for it: what it owns is its own, all else is nobody's.
    "PrivateUsers": "yes",
    # System V's queues and shared memory know no directory that could be closed.
    "PrivateIPC": "yes",
    # What it mounts, were it able to, nobody else sees.
    "PrivateMounts": "yes",
    # PrivateDevices leaves the host's /dev/shm, where every app may read what another's umask leaves open.
    "TemporaryFileSystem": "/dev/shm:mode=1777",  # noqa: S108  (the very remedy)
    # Read-only but for what ReadWritePaths= names: it cannot change its own code.
    "ProtectSystem": "strict",
    # People's homes have keys.
    "ProtectHome": "yes",
    # Nobody's certificate or session lives longer by a clock that was put back.
    "ProtectClock": "yes",
    "ProtectHostname": "yes",
    # /proc/sys and /sys are settings of the whole host.
    "ProtectKernelTunables": "yes",
    "ProtectKernelModules": "yes",
    # The kernel's log tells addresses of its memory.
    "ProtectKernelLogs": "yes",
    # Its own memory and task limits are files there.
    "ProtectControlGroups": "yes",
    # It sees its own processes only: no command lines or environments of others.
    "ProtectProc": "invisible",
    # Of /proc the processes alone: the rest tells about the host. (Costs psutil and os.getloadavg().)
    "ProcSubset": "pid",
    # No device node works, wherever it may find or make one.
    "DevicePolicy": "closed",
    # Not the keys of whoever started it.
    "KeyringMode": "private",
    # A namespace of its own would give it root's powers inside, and with them the kernel's less tried parts.
    "RestrictNamespaces": "yes",
    # A realtime process could starve the host.
    "RestrictRealtime": "yes",
    # No set-uid file for a later, outside process to run.
    "RestrictSUIDSGID": "yes",
    # Other personalities switch off the randomisation of addresses.
    "LockPersonality": "yes",
    # Nothing of it stays in shared memory after its end.
    "RemoveIPC": "yes",
    # Injected bytes never become code. (Costs just-in-time compilers and cffi's callbacks.)
    "MemoryDenyWriteExecute": "yes",
    # No raw packets, no netlink, no rare protocols with rare faults.
    "RestrictAddressFamilies": "AF_UNIX AF_INET AF_INET6",
    # Calls of another architecture would pass by the filter.
    "SystemCallArchitectures": "native",
    # What services need, less what only privileged ones and those that raise their own limits do.
    "SystemCallFilter": ["@system-service", "~@privileged @resources"],
    # A refused call is an error that the app can report; the default kills it.
    "SystemCallErrorNumber": "EPERM",
}

# Directives that an application may add; anything else is more likely a misspelt name than a wish.
OPTIONAL = frozenset(
    {
        "BindPaths",
        "BindReadOnlyPaths",
        "DeviceAllow",
        "ExecPaths",
        "IPAddressAllow",
        "IPAddressDeny",
        "InaccessiblePaths",
        "NoExecPaths",
        "PrivateNetwork",
        "ReadOnlyPaths",
        "ReadWritePaths",
        "RestrictFileSystems",
        "RestrictNetworkInterfaces",
        "SecureBits",
        "SocketBindAllow",
        "SocketBindDeny",
        "SupplementaryGroups",
        "SystemCallLog",
    }
)

# Empty is the strictest value of these, so an empty text must not remove them: that would allow everything.
STRICT_WHEN_EMPTY = frozenset({"CapabilityBoundingSet", "AmbientCapabilities"})

ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f]")


def _text(where: str, value: object) -> str:
    """Return a directive's value as systemd writes it; raises AnsibleFilterError for anything but text, number or truth value."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, str | int):
        raise AnsibleFilterError(
            f"{where}: {value!r} is not a text. Give what systemd expects behind the equals sign, or a list of such texts."
        )
    text = str(value)
    if CONTROL_CHARACTERS.search(text):
        raise AnsibleFilterError(f"{where}: {text!r} has a line break or another control character. Remove it.")
    return text


def systemd_sandbox(overrides: Mapping[str, Any] | None = None) -> list[str]:
    """Return the sandbox as ``Directive=value`` lines, for a unit's [Service] or for ``systemd-run -p``.

    ``overrides`` replaces or adds directives by name: a text, a truth value, or a list for a directive that is
    written several times. None or an empty text removes the directive, but for the two sets of capabilities an empty
    text means what it means to systemd: none.
    Raises AnsibleFilterError for names that are neither in the sandbox nor known to belong to one.
    """
    if overrides is not None and not isinstance(overrides, Mapping):
        raise AnsibleFilterError(
            f"sandbox: {overrides!r} is not a dictionary. Give directives by name, such as {{MemoryDenyWriteExecute: 'no'}}."
        )
    directives: dict[str, Value | None] = dict(SANDBOX)
    for name, value in (overrides or {}).items():
        where = f"sandbox.{name}"
        if name not in SANDBOX and name not in OPTIONAL:
            known = ", ".join(sorted({*SANDBOX, *OPTIONAL}))
            raise AnsibleFilterError(
                f"{where}: '{name}' is not a sandbox directive of systemd that Quintet knows. "
                f"Correct its name, or put it into a drop-in of the unit. Known are: {known}."
            )
        if value is None or (value == "" and name not in STRICT_WHEN_EMPTY):
            directives[name] = None
        elif isinstance(value, list | tuple):
            directives[name] = [_text(where, item) for item in value]
        else:
            directives[name] = _text(where, value)
    return [
        f"{name}={item}"
        for name, value in directives.items()
        if value is not None
        for item in ([value] if isinstance(value, str) else value)
    ]


def systemd_quote(value: object, command: bool = False) -> str:
    """Return ``value`` as one quoted word of a unit file: systemd reads back exactly the text that was given.

    ``command``: the word stands in an ``Exec…=`` line, where a dollar sign would start a variable.
    Raises AnsibleFilterError for line breaks and other control characters.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise AnsibleFilterError(
            f"systemd_quote: {value!r} is not a text. Put it between quotes in your variables, as the service shall see it."
        )
    text = str(value)
    if CONTROL_CHARACTERS.search(text):
        raise AnsibleFilterError(
            f"systemd_quote: {text!r} has a line break or another control character, which a unit file cannot carry. "
            "Remove it, or give the value as a credential."
        )
    for character, escaped in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%")):
        text = text.replace(character, escaped)
    if command:
        text = text.replace("$", "$$")
    return f'"{text}"'


def systemd_environment(variables: Mapping[str, Any]) -> list[str]:
    """Return ``Environment=`` lines of a unit for a dictionary of names and values, sorted by name.

    Raises AnsibleFilterError for impossible names, for truth values (whose spelling only the application knows) and for control characters.
    """
    lines = []
    for name in sorted(variables):
        if not ENVIRONMENT_NAME.fullmatch(name):
            raise AnsibleFilterError(
                f"environment: {name!r} cannot be the name of a variable. Use letters, digits and underscores, and no digit first."
            )
        try:
            quoted = systemd_quote(variables[name])
        except AnsibleFilterError as error:
            raise AnsibleFilterError(f"environment.{name}: {error.message.removeprefix('systemd_quote: ')}") from error
        # The quotes go round the assignment, not round the value.
        lines.append(f'Environment="{name}={quoted[1:]}')
    return lines


class FilterModule:
    """The filters of this file, by name."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters for Ansible."""
        return {
            "systemd_environment": systemd_environment,
            "systemd_quote": systemd_quote,
            "systemd_sandbox": systemd_sandbox,
        }
