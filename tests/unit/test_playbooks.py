"""What the collection's playbooks must not do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "playbooks"
PLAYBOOKS = sorted(path for path in FOLDER.glob("**/*.yml") if path.parent.name != "vars")


def tasks(entries: list[dict[str, Any]], *conditions: Any) -> Iterator[tuple[dict[str, Any], list[Any]]]:
    """Yield each task of some plays or blocks with all conditions that it is under."""
    for entry in entries:
        own = [*conditions, *([entry["when"]] if "when" in entry else [])]
        yield entry, own
        for key in ("tasks", "pre_tasks", "post_tasks", "block", "rescue", "always"):
            yield from tasks(entry.get(key) or [], *own)


@pytest.mark.parametrize("playbook", PLAYBOOKS, ids=lambda path: path.name)
def test_a_loop_over_apps_shows_no_item(playbook: Path) -> None:
    # An item has the app's secrets. Its label stands for it, but not where the task is skipped and Ansible is talkative.
    for task, conditions in tasks(yaml.safe_load(playbook.read_text())):
        if "django_app" in str(task.get("loop_control")):
            assert "label" in task["loop_control"], task["name"]
            assert conditions == [], task["name"]
