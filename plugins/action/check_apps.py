# Copyright (c) 2026 The Quintet authors
# MIT License (see LICENSE)
"""Controller side of quintet.django.check_apps; runs nothing on a host."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible.plugins.action import ActionBase
from ansible_collections.quintet.django.plugins.filter.systemd_sandbox import systemd_sandbox
from ansible_collections.quintet.django.plugins.module_utils.apps import load_schema, normalize, once_problems, problems
from ansible_collections.quintet.django.plugins.module_utils.source import source_problems
from ansible_collections.quintet.django.plugins.plugin_utils.certificates import bundle_problems, pair_problems


def sandbox_problems(apps: list[dict[str, Any]], where: list[str]) -> list[str]:
    """Say which directives of the apps' sandboxes are none."""
    found = []
    for app, place in zip(apps, where, strict=True):
        try:
            systemd_sandbox(app["sandbox"])
        except AnsibleFilterError as error:
            found.append(f"{place}.{error.message}")
    return found


def certificate_problems(apps: list[dict[str, Any]], where: list[str], loader: Any, directory: str | None) -> list[str]:
    """Say what is wrong with the certificates that apps are provided with, and with those of the authorities that they ask."""
    bundles = [
        problem
        for app, place in zip(apps, where, strict=True)
        if app["tls"] == "acme"
        for problem in bundle_problems(app["nginx"].get("tls_acme_bundle", ""), f"{place}.nginx.", loader, directory)
    ]
    return bundles + [
        problem
        for app, place in zip(apps, where, strict=True)
        if app["tls"] == "provided"
        for problem in pair_problems(
            app["nginx"].get("tls_certificate", ""),
            app["nginx"].get("tls_key", ""),
            [*app["nginx"].get("domains", app["domains"]), *app["nginx"].get("aliases", app["aliases"])],
            f"{place}.nginx.",
            loader,
            directory,
            datetime.now(UTC),
        )
    ]


class ActionModule(ActionBase):
    """Checks apps against the schema and against each other, and their sources on the controller."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the result of the task; `failed` with one paragraph for each problem."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(
            {
                "apps": {"type": "raw", "required": True},
                "label": {"type": "str", "default": "django_apps"},
                "hosts": {"type": "list", "elements": "str", "default": []},
                "database_address": {"type": "str", "default": ""},
            }
        )
        apps, label, schema = arguments["apps"], arguments["label"], load_schema()
        found = problems(apps, label, schema, arguments["hosts"])
        if not found:
            filled = [normalize(app, schema) for app in apps]
            where = [f"{label}[{number}]" for number in range(len(apps))]
            directory = (task_vars or {}).get("inventory_dir")
            found = source_problems(filled, where, directory)
            found += once_problems(filled, where, arguments["hosts"], arguments["database_address"])
            found += sandbox_problems(filled, where)
            found += certificate_problems(filled, where, self._loader, directory)
        if found:
            result.update(failed=True, msg="\n".join([*found, "Nothing was changed on any host."]), problems=found)
        else:
            result.update(changed=False, problems=[])
        return result
