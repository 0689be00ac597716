#!/usr/bin/python
# Copyright (c) 2026 The Quintet authors
# MIT License (see LICENSE)
"""Documentation of the action install_packages, which runs ansible.builtin.apt on the host."""

DOCUMENTATION = r"""
module: install_packages
short_description: Installs Debian's packages where some are missing
version_added: 0.4.0
author: The Quintet authors
description:
  - Asks dpkg first, and calls M(ansible.builtin.apt) only for what is missing, with fresh lists and without what they recommend.
  - >-
    M(ansible.builtin.apt) alone opens its cache in each run, and on Debian asks the mirrors for new lists, too: what it takes for their
    age is the time of a directory that a download without news leaves as it was.
  - A package that is there for the sake of others counts as missing, and is marked as wanted then, so that it does not go with them.
options:
  names: {description: "The packages' names, nothing else.", type: list, elements: str, required: true}
attributes:
  check_mode:
    support: full
    description: Says what is missing; on a host without python3-apt, too. Whether it could be had is not asked.
"""

EXAMPLES = r"""
- name: Install Nginx
  quintet.django.install_packages:
    names: [nginx]
"""

RETURN = r"""
missing: {description: What was missing., type: list, elements: str, returned: always}
"""
