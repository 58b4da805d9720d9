"""What proposes candidates and is told what became of them: ask and tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tuner.space.legal import Settings
from tuner.space.space import Space
from tuner.workers.worker import Result
from tuning_db import Outcome


@dataclass(frozen=True)
class Proposal:
    """A candidate to try.

    Attributes:
        number: tells it from the other proposals of its strategy.
        settings: of its schedule.
    """

    number: int
    settings: Settings


@dataclass(frozen=True)
class Tried:
    """A candidate that came to an end.

    Attributes:
        settings: of its schedule.
        outcome, reason: what became of it, and why it was not right.
        seconds: of one call; None unless it was right.
    """

    settings: Settings
    outcome: Outcome
    reason: str = ""
    seconds: float | None = None


class Strategy(Protocol):
    """In which order the candidates of one spec are tried, and the memory of what became of them.

    A proposal is running from `ask` until `tell` or `release`.
    """

    @property
    def space(self) -> Space:
        """The candidates."""

    def tried(self) -> list[Tried]:
        """Those that came to an end, in this run or an earlier one, in order."""

    def untried(self) -> list[Settings]:
        """Those that were not tried and are not running, here or elsewhere."""

    def ask(self) -> Proposal | None:
        """The next of the untried, at least one; None if the one that came up need not be run."""

    def tell(self, proposal: Proposal, result: Result) -> None:
        """A running candidate came to its end; this is remembered at once."""

    def release(self, proposal: Proposal) -> None:
        """A running candidate was not tried: it comes up again. Nothing is done for one that `tell` has ended."""

    def still_wanted(self, running: Sequence[Proposal]) -> list[Proposal]:
        """Those of the `running` that are to be tried here and now, next first; the others are not running any more."""

    def wait_for_others(self) -> bool:
        """Whether other processes still try candidates; if so, this waits a moment."""


def right(tried: Sequence[Tried]) -> list[tuple[float, Settings]]:
    """Seconds and settings of those that were right, fastest first."""
    times = [(each.seconds, each.settings) for each in tried if each.seconds is not None]
    return sorted(times, key=lambda each: each[0])
