"""Fixtures of the tests of a running site. They run inside `molecule verify`, which says where the hosts are."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cluster import without_firewalls


def pytest_configure(config: pytest.Config) -> None:
    """Name the marker of what runs with THOROUGH=1 alone."""
    config.addinivalue_line(
        "markers", "thorough: for what takes minutes and shows more of what others show; with THOROUGH=1"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is thorough, unless it is wanted; how many that are is in pytest's last line."""
    if os.environ.get("THOROUGH"):
        return
    left_out = [item for item in items if item.get_closest_marker("thorough")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture
def no_firewall() -> Iterator[None]:
    """Let a stranger come as far as the servers of several hosts themselves."""
    with without_firewalls():
        yield
