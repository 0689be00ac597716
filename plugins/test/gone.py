# Copyright (c) 2026 The Quintet authors
# MIT License (see LICENSE)
"""Whether the controller that a lock names is gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.quintet.django.plugins.module_utils.controller import is_gone


class TestModule:
    """What Ansible looks for in a test plugin."""

    def tests(self) -> dict[str, Callable[[Any], bool]]:
        """Return the tests by name."""
        return {"gone": is_gone}
