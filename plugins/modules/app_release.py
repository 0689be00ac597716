#!/usr/bin/python
# Copyright (c) 2026 The Quintet authors
# MIT License (see LICENSE)
"""Documentation of the action app_release, which runs on the controller."""

DOCUMENTATION = r"""
module: app_release
short_description: Computes an app's release id and packs its source
version_added: 0.1.0
author: The Quintet authors
description:
  - Reads the source and its lock of dependencies on the controller.
  - The id is a digest of the source, the lock, the declared settings and the collection's templates, equal for all hosts.
options:
  app: {description: The app's dictionary., type: dict, required: true}
  environment: {description: What the app gets as plain environment variables., type: dict, default: {}}
  archive: {description: Whether to write the source as an archive too., type: bool, default: false}
attributes:
  check_mode: {support: full, description: Changes nothing at any time.}
"""

EXAMPLES = r"""
- name: Compute the release
  quintet.django.app_release:
    app: "{{ django_app }}"
"""

RETURN = r"""
release: {description: Eight hex digits., type: str, returned: success}
lock: {description: SHA-256 of the lock., type: str, returned: success}
archive: {description: "Path of the archive on the controller, empty if none was asked for.", type: str, returned: success}
"""
