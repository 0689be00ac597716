"""What goes wrong, as an operator reads it."""

from collections.abc import Sequence


class QuintetError(Exception):
    """An error in three parts, what is wrong, where, and what to do, and lines that show more (a journal's)."""

    def __init__(self, what: str, where: str, remedy: str, details: Sequence[str] = ()) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.remedy = remedy
        self.details = tuple(details)

    def __str__(self) -> str:
        return "\n".join([self.what, self.where, self.remedy, *(f"  | {line}" for line in self.details)])


def as_quintet_error(app: str, error: Exception) -> QuintetError:
    """Return the error itself, or what an operator is told of one that nobody foresaw: mostly a disk that is full."""
    if isinstance(error, QuintetError):
        return error
    remedy = disk_advice(app) if isinstance(error, OSError) else "Report this with the journal."
    return QuintetError(f"{app}: {type(error).__name__}: {error}", "", remedy)


def disk_advice(app: str) -> str:
    """Return what to do when a file could not be written."""
    free = f"quintet prune {app}, journalctl --vacuum-size=200M, apt-get clean"
    return (
        f"See that the disk is neither full nor read-only (df -h, df -i, mount); to free space: {free}. Then try again."
    )
