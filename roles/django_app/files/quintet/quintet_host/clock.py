"""Time, so that tests need not wait for it."""

import time
from datetime import UTC, datetime


class Clock:
    """The host's clock."""

    def now(self) -> datetime:
        """Return the time of day, in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return seconds that never go back."""
        return time.monotonic()

    def seconds_since(self, moment: float) -> float:
        """Return how long ago a moment of `monotonic` is, in seconds, as exactly as a log needs it."""
        return round(self.monotonic() - moment, 1)

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


def iso(moment: datetime) -> str:
    """Write a moment in UTC as in 2026-11-23T20:00:00Z."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
