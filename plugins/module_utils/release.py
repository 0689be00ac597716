# Copyright (c) 2026 The Quintet authors
# MIT License (see LICENSE)
"""The release id: what an app's generations on all hosts have in common."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

COLLECTION = Path(__file__).resolve().parents[2]

# What a generation is rendered from. A change in any of these files is a new release.
RENDERED_FROM = (
    "roles/gunicorn/templates",
    "roles/gunicorn/files",
    "roles/daphne/templates",
    "roles/daphne/files",
    "roles/django_app/templates",
    "roles/django_app/files/generation",
    "plugins/filter",
)

# What an app's dictionary says about the edge or about the way of a change, not about what runs.
NOT_IN_A_RELEASE = (
    "aliases",
    "database_pool_size",
    "database_rights",
    "database_timeouts",
    "domains",
    "dump",
    "keep_generations",
    "migration_lock_seconds",
    "worker_stay_seconds",
    "nginx",
    "probes",
    "redis",
    "secret_fallbacks",
    "secrets",
    # In the units, which are part of the host's half of an id.
    "shared_files",
    "source",
    "static_pool",
    "tls",
)


def templates_digest(collection: Path = COLLECTION) -> str:
    """Return the SHA-256 of all files that generations are rendered from."""
    total = hashlib.sha256()
    for folder in RENDERED_FROM:
        for path in sorted((collection / folder).rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                total.update(str(path.relative_to(collection)).encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()


def release_id(app: dict[str, Any], environment: dict[str, str], source: str, lock: str, templates: str) -> str:
    """Return eight hex digits for an app with all defaults filled in.

    Secrets count by their names alone: their values are part of a host's numbered revision, and never of a digest that
    is shown. `environment` is what the app gets in plain text.
    """
    declared = {key: value for key, value in app.items() if key not in NOT_IN_A_RELEASE}
    text = json.dumps(
        {
            "app": declared,
            "environment": environment,
            "secrets": sorted(app["secrets"]),
            "source": source,
            "lock": lock,
            "templates": templates,
        },
        sort_keys=True,
        default=str,
    )
    return hashlib.sha256(text.encode()).hexdigest()[:8]
