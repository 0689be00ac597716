"""A worker that does nothing, until a file tells it to fork as often as it can."""

import contextlib
import os
import time
from pathlib import Path

FORK = Path("/srv/plain/shared/files/fork")
POLL_SECONDS = 0.2
# Well above the app's limit, and little enough for the test's machine where that fails.
MOST_CHILDREN = 1500


def fork_until_refused() -> int:
    """Fork sleeping children until the kernel says no; returns how many there are."""
    children = 0
    with contextlib.suppress(BlockingIOError):
        while children < MOST_CHILDREN:
            if os.fork() == 0:
                time.sleep(600)
                os._exit(0)
            children += 1
    return children


def main() -> None:
    """Wait for the file, fork, and write how many children it took."""
    while not FORK.exists():
        time.sleep(POLL_SECONDS)
    FORK.write_text(f"{fork_until_refused()}\n")
    while FORK.exists():
        time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    main()
