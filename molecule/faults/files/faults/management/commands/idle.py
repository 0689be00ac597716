"""A worker that has nothing to do; with FAULT=worker it dies."""

import signal
from typing import Any

from django.core.management.base import BaseCommand

from faults import FAULT


class Command(BaseCommand):
    """Waits for the signal to stop."""

    def handle(self, *args: Any, **options: Any) -> None:
        """Wait."""
        if FAULT == "worker":
            raise RuntimeError("this worker dies")
        stop = (signal.SIGTERM, signal.SIGINT)
        signal.pthread_sigmask(signal.SIG_BLOCK, stop)
        signal.sigwait(stop)
