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
