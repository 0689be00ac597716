"""What can be wrong with a generation: the environment variable FAULT names it."""

import os

FAULT = os.environ.get("FAULT", "")
