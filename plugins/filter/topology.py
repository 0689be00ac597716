# Copyright (c) 2026 The Quintet authors
# MIT License (see LICENSE)
"""Which parts of the site are on which hosts, and by which addresses they reach each other, from the inventory's groups."""

from __future__ import annotations

DOCUMENTATION = r"""
name: topology
short_description: Where the parts of the site are, by the groups of the inventory
version_added: 0.4.0
author: The Quintet authors
description:
  - Reads the groups edge, app, database and redis. A host that is in each group that is not empty has the whole site; then everything
    goes over its sockets, and several such hosts have a site each.
  - >-
    Parts on other hosts than the apps are reached over the network, by the C(quintet_address) of their host, else its
    C(ansible_host), else its name, which must then be an address by number.
options:
  _input: {description: "The variable C(groups).", type: dict, required: true}
  hostvars: {description: "The variable C(hostvars).", type: dict, required: true}
  app_port: {description: "The port on which the app hosts' Nginx serves an edge that is apart.", type: int, default: 443}
  between:
    description: How an edge asks app hosts, by V(tls) or, V(plain), without it in a network that nobody else reads.
    type: str
    default: tls
"""

EXAMPLES = r"""
topology: "{{ groups | quintet.django.topology(hostvars) }}"
"""

RETURN = r"""
_value:
  description:
    - C(apart), whether a site has more than one host; C(edge_apart), C(database_apart) and C(redis_apart), whether that part is
      on another host than an app is.
    - C(tls), whether an edge asks app hosts by TLS; not where a site has one host.
    - C(addresses), that of each host by its name, if C(apart).
    - C(app_servers), the app hosts by their names as the edge's Nginx asks them, if C(edge_apart).
    - C(database) and C(redis), the address of their host where it is apart, else an empty text.
  type: dict
"""

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

PARTS = ("edge", "app", "database", "redis")
# For so long the edge leaves out an app host that did not take or answer a request. Then one request tries it, and waits for
# its connection at most; where all are left out, everybody waits for this.
FAIL_SECONDS = 5


def address_of(host: str, variables: Mapping[str, Any]) -> str:
    """Return the address by which other hosts reach a host; raises AnsibleFilterError when it is no number."""
    address = str(variables.get("quintet_address") or variables.get("ansible_host") or host)
    try:
        ipaddress.ip_address(address)
    except ValueError as error:
        raise AnsibleFilterError(
            f"quintet_address: {host} is reached by '{address}', which is no address by number; names that others answer for are not "
            f"believed between hosts. Set quintet_address of {host} to its address in the network of the hosts, for example 10.0.0.11. "
            "Nothing was changed."
        ) from error
    return address


def with_port(address: str, port: int | str) -> str:
    """Return an address with a port behind it, as URLs and Nginx write it."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def topology(
    groups: Mapping[str, Sequence[str]],
    hostvars: Mapping[str, Mapping[str, Any]],
    app_port: int | str = 443,
    between: str = "tls",
) -> dict[str, Any]:
    """Return where the parts are; raises AnsibleFilterError for groups that make no site, and for TLS given up in public."""
    if between not in ("tls", "plain"):
        raise AnsibleFilterError(
            f"quintet_edge_to_apps: '{between}' is no way from an edge to app hosts. "
            "Write tls, or plain for a network that nobody else reads. "
            "Nothing was changed."
        )
    hosts = {part: list(groups.get(part, ())) for part in PARTS}
    every = {host for names in hosts.values() for host in names}
    apart = len(every) > 1 and any({*names} != every for names in hosts.values() if names)
    both = sorted({*hosts["edge"]} & {*hosts["app"]})
    for part in ("database", "redis"):
        if apart and len(hosts[part]) > 1:
            raise AnsibleFilterError(
                f"group {part}: has {', '.join(hosts[part])}, and a site has one host for it. Leave one of them. Nothing was changed."
            )
    if apart and both and ({*hosts["edge"]} != {*hosts["app"]} or len(both) > 1):
        raise AnsibleFilterError(
            f"groups edge and app: {', '.join(both)} in both. Where the edge balances several app hosts, it has hosts of its own. "
            "Move it, or leave one host in both groups. Nothing was changed."
        )
    addresses = {host: address_of(host, hostvars[host]) for host in sorted(every)} if apart else {}
    # Databases and Redis are reached by TLS alone.
    public = [
        f"{host} ({address})"
        for host, address in addresses.items()
        if host in hosts["edge"] + hosts["app"] and ipaddress.ip_address(address).is_global
    ]
    if public and between == "plain":
        raise AnsibleFilterError(
            f"quintet_edge_to_apps: plain, and reached by an address of the internet: {', '.join(public)}. What people "
            "send and get would go through it in the open. Set quintet_address to an address in a network of the hosts' own, or write tls. "
            "Nothing was changed."
        )
    edge_apart = apart and bool(hosts["edge"]) and not both
    found: dict[str, Any] = {
        "apart": apart,
        "tls": apart and between == "tls",
        "addresses": addresses,
        "edge_apart": edge_apart,
        # After one failure the others are asked; which servers are failing is known to all workers, and forgotten soon.
        "app_servers": {
            host: {"server": with_port(addresses[host], app_port), "max_fails": 1, "fail_timeout": FAIL_SECONDS}
            for host in hosts["app"]
        }
        if edge_apart
        else {},
    }
    for part in ("database", "redis"):
        # One way for all app hosts, or they would not have the same release.
        found[f"{part}_apart"] = apart and bool(hosts[part]) and {*hosts[part]} != {*hosts["app"]}
        found[part] = addresses[hosts[part][0]] if found[f"{part}_apart"] else ""
    return found


class FilterModule:
    """What Ansible looks for in a filter plugin."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"topology": topology}
