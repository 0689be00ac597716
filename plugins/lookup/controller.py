# Copyright (c) 2026 The Quintet authors
# MIT License (see LICENSE)
"""Who runs this play, for the host command's locks and logs."""

from __future__ import annotations

DOCUMENTATION = r"""
name: controller
short_description: Who runs this play
version_added: 0.2.0
author: The Quintet authors
description:
  - Returns the user and machine that run this play, and what identifies the process of ansible-playbook.
  - The host command keeps both with an app's lock, so that a later run can see that a killed one is gone.
"""

EXAMPLES = r"""
who: "{{ lookup('quintet.django.controller').by }}"
"""

RETURN = r"""
_raw:
  description: A dictionary of V(by), user@machine, and V(process), a dictionary, or null where there is no /proc.
  type: list
  elements: dict
"""

from typing import Any

from ansible.plugins.lookup import LookupBase
from ansible_collections.quintet.django.plugins.module_utils.controller import identity, who


class LookupModule(LookupBase):
    """What Ansible looks for in a lookup plugin."""

    def run(self, terms: list[Any], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[dict[str, Any]]:
        """Return one dictionary."""
        return [{"by": who(), "process": identity()}]
