#!/usr/bin/python
# Copyright (c) 2026 The Quintet authors
# MIT License (see LICENSE)
"""Documentation of the action check_certificate, which runs on the controller."""

DOCUMENTATION = r"""
module: check_certificate
short_description: Checks a certificate and its key before anything is touched
version_added: 0.3.0
author: The Quintet authors
description:
  - Checks that both can be read, belong together, are for all names and are in date.
  - Runs on the controller alone.
options:
  certificate:
    description: >-
      The certificate with its chain, its own first, as text in PEM or as a file on the controller. A relative path starts at the
      inventory's folder.
    type: str
    required: true
  key: {description: "Its key, likewise.", type: str, required: true}
  names: {description: The names that it must be for., type: list, elements: str, required: true}
  label: {description: What stands before tls_certificate and tls_key in messages., type: str, default: ""}
attributes:
  check_mode: {support: full, description: Changes nothing at any time.}
"""

EXAMPLES = r"""
- name: Check what the site is to have
  quintet.django.check_certificate:
    certificate: tls/shop.pem
    key: "{{ vault_shop_key }}"
    names: [shop.example.org, www.shop.example.org]
"""

RETURN = r"""
problems:
  description: One text for each problem.
  type: list
  elements: str
  returned: always
"""
