# Copyright (c) 2026 The Quintet authors
# MIT License (see LICENSE)
"""What is an address or a network, and which addresses lie in which networks."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from typing import Any


def is_network(text: Any) -> bool:
    """Say whether a text is an IPv4 or IPv6 address, or a network of them."""
    try:
        ipaddress.ip_network(str(text))
    except ValueError:
        return False
    return True


def is_within(address: Any, networks: Iterable[Any]) -> bool:
    """Say whether an address lies in one of some networks; an interface behind it, as in fe80::1%eth0, is no part of it."""
    found = ipaddress.ip_address(str(address).partition("%")[0])
    # What came over an IPv6 socket from an IPv4 address is that for a firewall.
    found = getattr(found, "ipv4_mapped", None) or found
    return any(found in ipaddress.ip_network(str(network), strict=False) for network in networks)


class TestModule:
    """What Ansible looks for in a test plugin."""

    def tests(self) -> dict[str, Callable[..., bool]]:
        """Return the tests by name."""
        return {"network": is_network, "within": is_within}
