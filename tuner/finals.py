"""Who won: the default, unless another is faster by more than the noise of a measurement side by side."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from tuner.measure import Timing

LEAST_GAIN = 0.01
"""A gain below one in a hundred is never called one, however quiet the machine is."""


@dataclass(frozen=True)
class Verdict:
    """Which schedule won.

    Attributes:
        winner: its key.
        gain: median of default time / winner's time over the rounds, minus 1; 0 if the default was kept.
        noise: what a gain had to exceed.
        reason: the same in one sentence.
    """

    winner: str
    gain: float
    noise: float
    reason: str


def judge(timings: Mapping[str, Timing], default: str) -> Verdict:
    """The fastest of `timings` if it beats `default` by more than the noise, else `default`.

    Where the default is not among `timings`, because it was not right, the fastest wins.

    Rounds are compared in pairs, since what disturbs a machine disturbs a whole round: the gain is the median of the
    ratios default / candidate minus 1, and the noise is how far their lower quartile lies below it, or `LEAST_GAIN` if
    that is more. So a winner was the faster one in three of four rounds.
    """
    if default not in timings:
        best = min(timings, key=lambda name: timings[name].seconds)
        return Verdict(best, 0.0, LEAST_GAIN, "the default schedule was not right here")
    ratios = {name: _ratios(timings[default], timing) for name, timing in timings.items() if name != default}
    if not ratios:
        return Verdict(default, 0.0, LEAST_GAIN, "default kept: no other candidate was right")
    best = max(ratios, key=lambda name: statistics.median(ratios[name]))
    gain = statistics.median(ratios[best]) - 1.0
    noise = max(LEAST_GAIN, 1.0 + gain - _lower_quartile(ratios[best]))
    if gain > noise:
        return Verdict(best, gain, noise, f"{1 + gain:.2f}x the default's speed, noise {noise:.1%}")
    return Verdict(
        default, 0.0, noise, f"default kept: the best other has {1 + gain:.2f}x its speed, noise {noise:.1%}"
    )


def _lower_quartile(values: tuple[float, ...]) -> float:
    return statistics.quantiles(values, n=4, method="inclusive")[0] if len(values) > 1 else values[0]


def _ratios(default: Timing, other: Timing) -> tuple[float, ...]:
    return tuple(slow / fast for slow, fast in zip(default.samples, other.samples, strict=True))
