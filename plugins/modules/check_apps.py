#!/usr/bin/python
# Copyright (c) 2026 The Quintet authors
# MIT License (see LICENSE)
"""Documentation of the action check_apps, which runs on the controller."""

DOCUMENTATION = r"""
module: check_apps
short_description: Checks apps before anything is touched
version_added: 0.1.0
author: The Quintet authors
description:
  - Checks app dictionaries against the argument spec of the role P(quintet.django.django_app#role), and against each other.
  - Checks that each app's source and its lock of dependencies can be used.
  - Runs on the controller alone.
options:
  apps: {description: The apps., type: raw, required: true}
  label: {description: The variable that messages name., type: str, default: django_apps}
  hosts:
    description:
      - Names of the hosts that serve the apps together. Several must have a way to agree who does what is to be done once, and an app
        must say how they share its files.
    type: list
    elements: str
    default: []
  database_address: {description: The address of the PostgreSQL with the apps' databases that they share, or empty., type: str, default: ""}
attributes:
  check_mode: {support: full, description: Changes nothing at any time.}
"""

EXAMPLES = r"""
- name: Check the apps
  quintet.django.check_apps:
    apps: "{{ django_apps }}"
    hosts: [app1, app2]
    database_address: 10.0.0.21
"""

RETURN = r"""
problems:
  description: One text for each problem.
  type: list
  elements: str
  returned: always
"""
