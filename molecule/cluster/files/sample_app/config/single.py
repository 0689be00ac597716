"""Work that may be done on one host at a time: notes when it begins, goes on and ends."""

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

LOG = Path(os.environ["MEDIA_ROOT"]).parent / "once/worker"


def note(word: str) -> None:
    """Write a line: the word, the host, the process, the time."""
    with LOG.open("a") as log:
        print(word, os.uname().nodename, os.getpid(), time.time(), file=log)


def stop(_number: int, _frame: FrameType | None) -> None:
    """End as one does who was told to."""
    note("ends")
    sys.exit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    note("begins")
    while True:
        time.sleep(0.25)
        note("works")
