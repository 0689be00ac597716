"""Fixtures of the tests of a running site. They run inside `molecule verify`, which says where the hosts are."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
