"""How long a search may last: seconds, or a number of trials."""

from __future__ import annotations

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
    """What one spec may cost; exactly one of the two is set.

    Attributes:
        seconds: time of this run, whatever earlier runs took.
        trials: measured candidates of the study, those of earlier runs included.
    """

    seconds: float | None = None
    trials: int | None = None

    def __str__(self) -> str:
        return f"{self.trials} trials" if self.seconds is None else f"{self.seconds:g} s"


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
        if self.budget.trials is not None:
            return trials >= self.budget.trials
        assert self.budget.seconds is not None
        return self.elapsed() >= self.budget.seconds

    def left(self, trials: int) -> int:
        """How many candidates more may be begun once `trials` were; a budget of seconds does not say."""
        return sys.maxsize if self.budget.trials is None else max(0, self.budget.trials - trials)

    def share(self, trials: int) -> float:
        """The share of the budget that is gone, 0 to 1."""
        if self.budget.trials is not None:
            return min(1.0, trials / self.budget.trials)
        assert self.budget.seconds is not None
        return min(1.0, self.elapsed() / self.budget.seconds)
