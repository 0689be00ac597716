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


def disk_advice(app: str) -> str:
    """Return what to do when a file could not be written."""
    free = f"quintet prune {app}, journalctl --vacuum-size=200M, apt-get clean"
    return (
        f"See that the disk is neither full nor read-only (df -h, df -i, mount); to free space: {free}. Then try again."
    )
