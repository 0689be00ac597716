# Copyright (c) 2026 The Quintet authors
# MIT License (see LICENSE)
"""Whom an edge's Nginx asks for each site, from its configuration."""

from __future__ import annotations

DOCUMENTATION = r"""
name: edge_servers
short_description: Whom an edge's Nginx asks for each site
version_added: 0.4.0
author: The Quintet authors
description:
  - Reads the upstreams of HTTP in the sites that the role nginx has written, which an edge's sites of app hosts have for WebSockets, too.
options:
  _input: {description: The sites' files, one after the other., type: str, required: true}
"""

EXAMPLES = r"""
edge_servers: "{{ edge_sites.stdout | quintet.django.edge_servers }}"
"""

RETURN = r"""
_value:
  description: >-
    By the site's name its servers, and of each whether it is asked: C({"shop": {"10.0.0.11:443": true, "10.0.0.12:443": false}}), where
    the second is down.
  type: dict
"""

import re
from collections.abc import Callable
from typing import Any

UPSTREAM = re.compile(r"^upstream (\S+)-http \{$(.*?)^\}", re.MULTILINE | re.DOTALL)
SERVER = re.compile(r"^ +server ([^ ;]+)([^;]*);", re.MULTILINE)


def edge_servers(text: str) -> dict[str, dict[str, bool]]:
    """Return by site its servers, and whether each of them is asked."""
    return {
        site: {server: "down" not in options.split() for server, options in SERVER.findall(servers)}
        for site, servers in UPSTREAM.findall(text)
    }


class FilterModule:
    """What Ansible looks for in a filter plugin."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"edge_servers": edge_servers}
