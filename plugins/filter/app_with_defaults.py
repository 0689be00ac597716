# Copyright (c) 2026 The Quintet authors
# MIT License (see LICENSE)
"""An app's dictionary with all defaults filled in, from the argument spec of the role django_app."""

from __future__ import annotations

DOCUMENTATION = r"""
name: app_with_defaults
short_description: An app with all defaults filled in
version_added: 0.1.0
author: The Quintet authors
description:
  - Fills an app's dictionary with the defaults of the role P(quintet.django.django_app#role).
  - Fills in those as well that follow from its name and domains.
options:
  _input: {description: The app's dictionary., type: dict, required: true}
"""

EXAMPLES = r"""
user: "{{ (django_app | quintet.django.app_with_defaults).user }}"
"""

RETURN = r"""
_value: {description: The dictionary., type: dict}
"""

import json
from collections.abc import Callable
from typing import Any

from ansible_collections.quintet.django.plugins.module_utils.apps import load_schema, normalize, plain

# Templates ask for one app many dozen times in one task. By what was given, as text; for as long as a process lasts.
KNOWN: dict[str, dict[str, Any]] = {}


def app_with_defaults(app: dict[str, Any]) -> dict[str, Any]:
    """Return a copy with every option of the schema."""
    given = plain(app)
    key = json.dumps(given)
    if key not in KNOWN:
        KNOWN[key] = normalize(given, load_schema())
    return KNOWN[key]


class FilterModule:
    """What Ansible looks for in a filter plugin."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"app_with_defaults": app_with_defaults}
