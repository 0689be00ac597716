# Copyright (c) 2026 The Quintet authors
# MIT License (see LICENSE)
"""A text in PEM, given as such or as a file."""

from __future__ import annotations

DOCUMENTATION = r"""
name: pem
short_description: A text in PEM, given as such or as a file
version_added: 0.3.0
author: The Quintet authors
description:
  - Returns each term that is a text in PEM, and for each other one the content of the file of that name on the controller. A file
    that Ansible Vault has encrypted is decrypted.
  - A relative path starts at the inventory's folder.
options:
  _terms: {description: Texts or paths., type: list, elements: str, required: true}
"""

EXAMPLES = r"""
key: "{{ lookup('quintet.django.pem', 'tls/shop.key') }}"
"""

RETURN = r"""
_raw: {description: The texts., type: list, elements: str}
"""

from typing import Any

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase
from ansible_collections.quintet.django.plugins.plugin_utils.certificates import read_pem


class LookupModule(LookupBase):
    """What Ansible looks for in a lookup plugin."""

    def run(self, terms: list[Any], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[str]:
        """Return one text for each term."""
        try:
            return [read_pem(term, self._loader, (variables or {}).get("inventory_dir")) for term in terms]
        except OSError as error:
            raise AnsibleLookupError(f"{error}: no such file can be read on the controller") from error
