# Copyright (c) 2026 The Quintet authors
# MIT License (see LICENSE)
"""Controller side of quintet.django.app_release; runs nothing on a host."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.plugins.action import ActionBase
from ansible_collections.quintet.django.plugins.module_utils.apps import load_schema, normalize
from ansible_collections.quintet.django.plugins.module_utils.release import release_id, templates_digest
from ansible_collections.quintet.django.plugins.module_utils.source import (
    SourceError,
    check_lock,
    digest,
    list_files,
    servers_of,
    source_directory,
    write_archive,
)


class ActionModule(ActionBase):
    """Computes an app's release id from its source, lock and settings."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the result of the task; `failed` with what is wrong in the source."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(
            {
                "app": {"type": "dict", "required": True},
                "environment": {"type": "dict", "default": {}},
                "archive": {"type": "bool", "default": False},
            }
        )
        app = normalize(arguments["app"], load_schema())
        directory = source_directory(app, (task_vars or {}).get("inventory_dir"))
        try:
            entries = list_files(directory)
            lock = check_lock(directory, app["requirements"], servers_of(app))
            source = digest(directory, entries)
            archive = None
            if arguments["archive"]:
                # Ansible removes this directory at the end of the run.
                archive = Path(tempfile.mkdtemp(dir=constants.DEFAULT_LOCAL_TMP)) / f"{app['name']}.tar.gz"
                write_archive(directory, entries, archive)
        except (SourceError, OSError, UnicodeDecodeError) as error:
            result.update(failed=True, msg=f"app '{app['name']}': {error}")
            return result
        result.update(
            changed=False,
            release=release_id(app, arguments["environment"], source, lock, templates_digest()),
            lock=lock,
            archive=str(archive) if archive else "",
        )
        return result
