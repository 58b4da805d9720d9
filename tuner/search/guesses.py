"""What guessed times were worth, once some are measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

FEWEST_TO_JUDGE = 5
"""Measured candidates below which a rank correlation says little about the guesses; a prepared list has 2 to 8."""


def order_quality(predicted: Sequence[float], measured: Sequence[float]) -> float | None:
    """Spearman's rank correlation of guessed with measured times; None for fewer than three, or where all are equal."""
    if len(predicted) < 3 or len(set(predicted)) == 1 or len(set(measured)) == 1:
        return None
    return statistics.correlation(_ranks(predicted), _ranks(measured))


def is_worth_nothing(pairs: Sequence[tuple[float, float]]) -> bool:
    """Whether the times of enough candidates show that the guesses order them no better than chance does."""
    quality = order_quality([guess for guess, _ in pairs], [seconds for _, seconds in pairs])
    return len(pairs) >= FEWEST_TO_JUDGE and quality is not None and quality <= 0.0


def _ranks(values: Sequence[float]) -> list[float]:
    """Places in rising order; equal values share the mean of theirs."""
    ordered = sorted(values)
    first = {value: ordered.index(value) for value in ordered}
    return [first[value] + (ordered.count(value) - 1) / 2 for value in values]
