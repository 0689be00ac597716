# Copyright (c) 2026 The Quintet authors
# MIT License (see LICENSE)
"""The text of a template, without a deep copy of all variables."""

from __future__ import annotations

DOCUMENTATION = r"""
name: template
short_description: The text of a template, without a deep copy of all variables
version_added: 0.4.0
author: The Quintet authors
description:
  - Returns what R(ansible.builtin.template, ansible_collections.ansible.builtin.template_lookup) returns, sooner. That one copies all
    variables of the host in depth for each template, which takes longer than the template.
options:
  _terms: {description: Names of templates., type: list, elements: str, required: true}
  template_vars: {description: More variables for the template., type: dict, default: {}}
"""

EXAMPLES = r"""
text: "{{ lookup('quintet.django.template', 'nginx.conf.j2') }}"
"""

RETURN = r"""
_raw: {description: The texts., type: list, elements: str}
"""

from typing import Any

from ansible.plugins.loader import lookup_loader
from ansible.plugins.lookup import LookupBase


class Variables(dict[str, Any]):
    """Variables whose copy in depth is a shallow one: a template can only replace them, not change them."""

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return dict(self)


class LookupModule(LookupBase):
    """What Ansible looks for in a lookup plugin."""

    def run(self, terms: list[Any], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[Any]:
        """Return the text of each template."""
        lookup = lookup_loader.get("ansible.builtin.template", loader=self._loader, templar=self._templar)
        texts: list[Any] = lookup.run(terms, variables=Variables(variables or {}), **kwargs)
        return texts
