# Copyright (c) 2026 The Quintet authors
# MIT License (see LICENSE)
"""Controller side of quintet.django.check_certificate; runs nothing on a host."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.quintet.django.plugins.plugin_utils.certificates import pair_problems


class ActionModule(ActionBase):
    """Checks a certificate and its key; neither is in the result."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the result of the task; `failed` with one line for each problem."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(
            {
                "certificate": {"type": "str", "required": True},
                "key": {"type": "str", "required": True, "no_log": True},
                "names": {"type": "list", "elements": "str", "required": True},
                "label": {"type": "str", "default": ""},
            }
        )
        found = pair_problems(
            arguments["certificate"],
            arguments["key"],
            arguments["names"],
            arguments["label"],
            self._loader,
            (task_vars or {}).get("inventory_dir"),
            datetime.now(UTC),
        )
        if found:
            result.update(failed=True, msg="\n".join([*found, "Nothing was changed."]), problems=found)
        else:
            result.update(changed=False, problems=[])
        return result
