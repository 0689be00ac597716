# Copyright (c) 2026 The Quintet authors
# MIT License (see LICENSE)
"""Controller side of quintet.django.install_packages."""

from __future__ import annotations

import shlex
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

# Prints the state and the name of each package that was asked for by hand. Of an installed one the state is "ii"; one whose installation
# was cut off has another. One that came for the sake of others would go with them, so it does not count.
LOOK = r"""apt-mark showmanual "$@" | xargs --no-run-if-empty dpkg-query --show --showformat='${db:Status-Abbrev}${Package}\n'"""
# How old apt's lists may be when something is installed, in seconds.
LISTS_SECONDS = 3600


def missing_packages(names: list[str], listed: str) -> list[str]:
    """Return those of the names that are not installed by what LOOK has printed."""
    lines = [line.split() for line in listed.splitlines()]
    installed = {line[1] for line in lines if line[:1] == ["ii"] and len(line) == 2}
    return [name for name in names if name not in installed]


class ActionModule(ActionBase):
    """Looks for packages by dpkg, and calls apt where some are missing."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the result of the task: that of apt where it was called."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec({"names": {"type": "list", "elements": "str", "required": True}})
        names = arguments["names"]
        missing = missing_packages(names, self._look(names)) if names else []
        result.update(changed=bool(missing), missing=missing)
        if missing and self._task.check_mode:
            result["msg"] = f"would install {', '.join(missing)}"
        elif missing:
            apt = {
                "name": missing,
                "install_recommends": False,
                "update_cache": True,
                "cache_valid_time": LISTS_SECONDS,
            }
            result |= self._execute_module(module_name="ansible.legacy.apt", module_args=apt, task_vars=task_vars)
        return result

    def _look(self, names: list[str]) -> str:
        """Return what LOOK prints on the host; raises AnsibleActionFail where there is no apt."""
        command = shlex.join(["sh", "-c", LOOK, "sh", *names])
        done: dict[str, Any] = self._low_level_execute_command(command)
        if done["rc"] != 0:
            said = " ".join((done["stderr"] or done["stdout"]).split())
            raise AnsibleActionFail(
                f"{', '.join(names)}: this host can't say which packages it has: {said}. Nothing was changed."
            )
        return str(done["stdout"])
