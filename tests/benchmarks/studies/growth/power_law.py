"""Exponents: y = a x^b, fitted by least squares on logarithms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PowerLaw:
    """A fit.

    Attributes:
        factor: a.
        exponent: b.
        standard_error: of the exponent, from how far the points lie off the line; infinite for two points.
    """

    factor: float
    exponent: float
    standard_error: float

    def at(self, x: float) -> float:
        """a x^b."""
        return float(self.factor * x**self.exponent)


def fit(xs: Sequence[float], ys: Sequence[float]) -> PowerLaw:
    """The power law nearest to the points, whose coordinates are positive.

    Raises:
        ValueError: fewer than two different x.
    """
    logs_x, logs_y = [math.log(x) for x in xs], [math.log(y) for y in ys]
    count = len(logs_x)
    if len(set(logs_x)) < 2 or count != len(logs_y):
        raise ValueError(f"an exponent needs two points with different x, not x {list(xs)} with y {list(ys)}")
    mean_x, mean_y = sum(logs_x) / count, sum(logs_y) / count
    spread = sum((x - mean_x) ** 2 for x in logs_x)
    exponent = sum((x - mean_x) * (y - mean_y) for x, y in zip(logs_x, logs_y, strict=True)) / spread
    offset = mean_y - exponent * mean_x
    residual = sum((y - offset - exponent * x) ** 2 for x, y in zip(logs_x, logs_y, strict=True))
    error = math.sqrt(residual / (count - 2) / spread) if count > 2 else math.inf
    return PowerLaw(math.exp(offset), exponent, error)
