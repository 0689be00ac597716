"""Fixtures of the tests of a running site. They run inside `molecule verify`, which says where the hosts are."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cluster import without_firewalls


@pytest.fixture
def no_firewall() -> Iterator[None]:
    """Let a stranger come as far as the servers of several hosts themselves."""
    with without_firewalls():
        yield
