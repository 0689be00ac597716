# Copyright (c) 2026 The Quintet authors
# MIT License (see LICENSE)
"""How many connections to a database server the apps on all their hosts can hold at the same time."""

from __future__ import annotations

DOCUMENTATION = r"""
name: database_connections
short_description: The connections that apps on several hosts can hold
version_added: 0.4.0
author: The Quintet authors
description:
  - Adds up, for each app host, what each app with a database can hold - a connection for each thread of Gunicorn and each process of
    Daphne, twice, since two generations run during a switch; C(database_connections) for each process of a worker; two for each timer, and
    four for commands, migrations among them.
  - >-
    One app host more, as large as the largest, is counted in, and 13 for administration, so that a host more needs no restart of the
    server.
  - Workers and threads that the app does not say follow from the host's facts, as in the role gunicorn.
options:
  _input: {description: "Apps, with all defaults.", type: list, elements: dict, required: true}
  hosts: {description: "The app hosts.", type: list, elements: str, required: true}
  hostvars: {description: "The variable C(hostvars).", type: dict, required: true}
  pooled:
    description: >-
      Whether the apps share connections by PgBouncer. Then it is C(database_pool_size) for each of an app's two logins; one for each
      process of a worker and each timer, which may hold a lock; and four for commands.
    type: bool
    default: false
"""

EXAMPLES = r"""
needed: "{{ django_apps | map('quintet.django.app_with_defaults') | quintet.django.database_connections(groups['app'], hostvars) }}"
"""

RETURN = r"""
_value:
  description: >-
    C(needed), the number, and C(sum), how it adds up, a line for each host and app. C(clients), the number if they are not pooled.
  type: dict
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

# PostgreSQL keeps three for superusers; the rest is for people, monitoring and backups.
ADMINISTRATION = 13
# Hooks, `quintet manage`, and a migration with the connection that holds its lock and its dump.
COMMANDS = 4
# Its own, and one that holds a lock.
TIMER = 2
# Each app's; both have a password while it changes.
LOGINS = 2
# Two generations run while one takes over from the other.
GENERATIONS = 2


def fact(host: str, hostvars: Mapping[str, Any], name: str) -> int:
    """Return a number that is known about a host; raises AnsibleFilterError when it is not."""
    facts = hostvars[host].get("ansible_facts", {}) if host in hostvars else {}
    if name not in facts:
        raise AnsibleFilterError(
            f"postgresql_max_connections: {host} has not been asked for its {name}, from which the connections of its apps follow. "
            "Run this for all hosts (without --limit), or give each app gunicorn.workers, gunicorn.threads and daphne.processes."
        )
    return int(facts[name])


def gunicorn_threads(app: Mapping[str, Any], host: str, hostvars: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many workers Gunicorn has, and threads in each; as role gunicorn derives them."""
    own = app["gunicorn"]
    workers = own.get("workers")
    if workers is None:
        workers = max(1, min(fact(host, hostvars, "processor_nproc"), fact(host, hostvars, "memtotal_mb") // 512))
    if own.get("worker_class", "gthread") != "gthread":
        return int(workers), 1
    threads = own.get("threads")
    if threads is None:
        threads = max(2, min(8, fact(host, hostvars, "memtotal_mb") // (64 * max(1, int(workers)))))
    # One more, which is kept for health.
    return int(workers), int(threads) + bool(own.get("reserved_paths", ["/healthz"]))


def of_app(app: Mapping[str, Any], host: str, hostvars: Mapping[str, Any]) -> tuple[int, str]:
    """Return how many connections an app can hold on a host, and how they add up."""
    workers, threads = gunicorn_threads(app, host, hostvars)
    parts = {f"Gunicorn {workers} x {threads} threads x {GENERATIONS} generations": workers * threads * GENERATIONS}
    if app["asgi"]:
        processes = app["daphne"].get("processes")
        processes = int(min(fact(host, hostvars, "processor_nproc"), 4) if processes is None else processes)
        parts[f"Daphne {processes} x {GENERATIONS} generations"] = processes * GENERATIONS
    for worker in app["workers"]:
        each = worker["database_connections"]
        parts[f"worker {worker['name']} {worker['processes']} x {each}"] = worker["processes"] * each
    if app["timers"]:
        parts[f"timers {len(app['timers'])} x {TIMER}"] = len(app["timers"]) * TIMER
    parts["commands"] = COMMANDS
    said = " + ".join(f"{count} ({what})" for what, count in parts.items())
    total = sum(parts.values())
    return total, f"{app['name']} on {host}: {said} = {total}."


def past_pool(app: Mapping[str, Any], host: str, _hostvars: Mapping[str, Any]) -> tuple[int, str]:
    """Return how many connections an app can hold on a host past the pool, and how they add up."""
    processes = sum(worker["processes"] for worker in app["workers"])
    parts = {"workers": processes, "timers": len(app["timers"]), "commands": COMMANDS}
    said = " + ".join(f"{count} ({what})" for what, count in parts.items() if count)
    return sum(parts.values()), f"{app['name']} on {host}, past the pool: {said} = {sum(parts.values())}."


def added_up(
    apps: Sequence[Mapping[str, Any]],
    hosts: Sequence[str],
    hostvars: Mapping[str, Any],
    count: Callable[..., tuple[int, str]],
) -> tuple[int, int, list[str]]:
    """Return the connections of all hosts, those of the largest one, and a line for each host and app."""
    lines, totals = [], []
    for host in hosts:
        found = [count(app, host, hostvars) for app in apps if app["database"]]
        totals.append(sum(number for number, _ in found))
        lines += [said for _, said in found]
    return sum(totals), max(totals, default=0), lines


def database_connections(
    apps: Sequence[Mapping[str, Any]], hosts: Sequence[str], hostvars: Mapping[str, Any], pooled: bool = False
) -> dict[str, Any]:
    """Return the connections that are needed, and how they add up; raises AnsibleFilterError for a host that nobody has asked."""
    total, largest, lines = added_up(apps, hosts, hostvars, of_app)
    clients, pools = total + largest + ADMINISTRATION, 0
    if pooled:
        total, largest, lines = added_up(apps, hosts, hostvars, past_pool)
        sizes = {app["name"]: app["database_pool_size"] * LOGINS for app in apps if app["database"]}
        lines = [
            f"The pool of {name}: {size // LOGINS} x {LOGINS} logins = {size}." for name, size in sizes.items()
        ] + lines
        pools = sum(sizes.values())
    needed = pools + total + largest + ADMINISTRATION
    lines.append(f"With {largest} for one app host more and {ADMINISTRATION} for administration: {needed}.")
    return {"needed": needed, "sum": "\n".join(lines), "clients": clients}


class FilterModule:
    """What Ansible looks for in a filter plugin."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"database_connections": database_connections}
