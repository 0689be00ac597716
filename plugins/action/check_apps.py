# Copyright (c) 2026 The Quintet authors
# MIT License (see LICENSE)
"""Controller side of quintet.django.check_apps; runs nothing on a host."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.quintet.django.plugins.module_utils.apps import load_schema, problems


class ActionModule(ActionBase):
    """Checks apps against the schema and against each other."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the result of the task; `failed` with one paragraph for each problem."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(
            {"apps": {"type": "raw", "required": True}, "label": {"type": "str", "default": "django_apps"}}
        )
        found = problems(arguments["apps"], arguments["label"], load_schema())
        if found:
            result.update(failed=True, msg="\n".join([*found, "Nothing was changed on any host."]), problems=found)
        else:
            result.update(changed=False, problems=[])
        return result
