"""How long a search may last: seconds, or a number of trials."""

from __future__ import annotations

import math
import re
import sys
import time
from dataclasses import dataclass, field

from tuner.errors import BudgetError
from tuning_db import shortened

_MOST, _SAID = 1e9, 60
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Budget:
    """What one spec may cost; at least one of the two is set, and what is reached first ends the search.

    Attributes:
        seconds: time of this run, whatever earlier runs took.
        trials: measured candidates, those of earlier runs included.
        strict: whether candidates that have begun when the seconds are over are given back, instead of finished.
    """

    seconds: float | None = None
    trials: int | None = None
    strict: bool = False

    def __str__(self) -> str:
        parts = [f"{self.seconds:g} s"] if self.seconds is not None else []
        return " or ".join(parts + ([f"{self.trials} trials"] if self.trials is not None else []))


DEFAULT = Budget(seconds=40.0)
"""Per spec; with the workload of a CPU `make tune` then takes about five minutes."""


def parse_budget(text: str) -> Budget:
    """The budget that `text` writes: "60s", "5m", "1h", or a number of trials as "40".

    Raises:
        BudgetError: anything else, or nothing.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", text, re.ASCII)
    if match is None or not 0.0 < float(match[1]) < _MOST:
        raise BudgetError(text=shortened(text, _SAID))
    if match[2]:
        return Budget(seconds=float(match[1]) * _UNITS[match[2]])
    if "." in match[1]:
        raise BudgetError(text=shortened(text, _SAID))
    return Budget(trials=int(match[1]))


@dataclass
class Clock:
    """A budget that runs from the moment this is made."""

    budget: Budget
    started: float = field(default_factory=time.monotonic)

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def spent(self, trials: int) -> bool:
        """Whether nothing is left once `trials` candidates are measured."""
        return self.share(trials) >= 1.0

    def patience(self) -> float:
        """Seconds to wait for a candidate that has begun: without end unless the budget is strict."""
        if self.budget.seconds is None or not self.budget.strict:
            return math.inf
        return self.budget.seconds - self.elapsed()

    def left(self, trials: int) -> int:
        """How many candidates more may be begun once `trials` were; a budget of seconds does not say."""
        return sys.maxsize if self.budget.trials is None else max(0, self.budget.trials - trials)

    def share(self, trials: int) -> float:
        """The share of the budget that is gone, 0 to 1."""
        of_trials = 0.0 if self.budget.trials is None else trials / self.budget.trials
        of_seconds = 0.0 if self.budget.seconds is None else self.elapsed() / self.budget.seconds
        return min(1.0, max(of_trials, of_seconds))
