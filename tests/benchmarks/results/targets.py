"""What must be reached: a number that was measured beside its limit, and whether it keeps it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A number with its limit.

    Attributes:
        name: what was measured.
        found: the number; None where it was not measured, which leaves the target open.
        limit: what `found` must be at least, or at most.
        least: whether the limit is the least that `found` may be, or the most.
        of: follows the limit, as in "eager" or "of the ceiling".
        remark: printed at the end in brackets.
        shown: a number as text.
    """

    name: str
    found: float | None
    limit: float
    least: bool
    of: str = ""
    remark: str = ""
    shown: Callable[[float], str] = "{:.2f}x".format

    @property
    def reached(self) -> bool | None:
        """Whether `found` keeps the limit; None where it is open."""
        if self.found is None:
            return None
        return self.found >= self.limit if self.least else self.found <= self.limit

    def __str__(self) -> str:
        mark = {True: "reached", False: "MISSED ", None: "open   "}[self.reached]
        found = "not measured" if self.found is None else self.shown(self.found)
        bound = f"{'at least' if self.least else 'at most'} {self.shown(self.limit)}"
        of = f" {self.of}" if self.of else ""
        return f"{mark}  {self.name}: {found}, {bound}{of}{f' ({self.remark})' if self.remark else ''}"
