"""What is timed, what a sample of it is, and what came of it."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

SAMPLE_SECONDS = 1e-3
"""A sample is as many calls as fill this time."""

_MOST_CALLS = 1000


@dataclass(frozen=True)
class Timed:
    """Something to time.

    Attributes:
        run: one call.
        reset: puts the inputs back to what they were; called before every sample, outside the time that is taken,
            so that no kernel is measured on its own output (a state that is updated in place).
        others: the same call on other inputs, which a GPU's sampler takes in rotation with `run`.
    """

    run: Callable[[], object]
    reset: Callable[[], object]
    others: tuple[Callable[[], object], ...] = ()


@dataclass(frozen=True)
class Timing:
    """Samples of one call.

    Attributes:
        samples: seconds per call, one for each sample, in the order they were taken.
    """

    samples: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """The median."""
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, relative to the median."""
        if len(self.samples) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        return (high - low) / 2 / self.seconds


class Sampler(Protocol):
    """Takes samples of one call after another."""

    def warm(self, name: str, call: Timed) -> None:
        """Run the call called `name` until it is warm, and decide how many make a sample."""

    def sample(self, name: str, call: Timed) -> float | None:
        """Seconds per call; None if the device was throttled."""


def repeats_for(once: float) -> int:
    """How many calls of `once` seconds make a sample."""
    return max(1, min(_MOST_CALLS, round(SAMPLE_SECONDS / max(once, 1e-9))))
