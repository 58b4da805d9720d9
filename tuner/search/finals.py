"""The finals: the best few of a search and the default, timed in turn.

The default wins, or a simpler one, unless another is faster by more than the noise. Rounds are compared in pairs, since
what disturbs a machine disturbs a whole round. How sure a comparison is comes from a bootstrap over the rounds (Efron
and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).
"""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from codegen.schedules.schedule import Schedule
from codegen.spec import Spec
from tuner.errors import NothingMeasuredError
from tuner.measure.timed import Timing
from tuner.search.search import Searched
from tuner.search.strategy import right
from tuner.session import Session
from tuner.space.legal import changes
from tuner.workers.worker import Finals

FINALISTS = 3
"""How many candidates meet the default once more."""

FINAL_ROUNDS = 60
"""Most rounds of the finals."""

LEAST_GAIN = 0.01
"""A gain below one in a hundred is never called one, however quiet the machine is."""

CONFIDENCE = 0.98
"""How sure a gain must be: with three finalists, one false winner in about thirty searches where nothing is faster."""

_RESAMPLES = 1000


@dataclass(frozen=True)
class Comparison:
    """How much faster one candidate is than another, in the rounds that timed both.

    Attributes:
        gain: median of other's time / its time over the rounds, minus 1.
        noise: what a gain had to exceed: how far the least that `CONFIDENCE` allows lies below it, or `LEAST_GAIN`.
    """

    gain: float
    noise: float

    @property
    def certain(self) -> bool:
        """Whether the gain exceeds the noise."""
        return self.gain > self.noise


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


def hold_finals(
    spec: Spec, session: Session, searched: Searched, *, though_none_was_right: bool = False
) -> tuple[dict[str, Timing], Verdict]:
    """Time the default and the best of a search in turn, and judge; times by key of the schedule.

    Args:
        spec, session, searched: of the search.
        though_none_was_right: whether the default is measured again where nothing was right in the search; its worker
            alone may have failed.

    Raises:
        NothingMeasuredError: no candidate was right.
    """
    finalists = finalists_of(searched)
    candidates = tuple(session.candidate(spec, schedule.settings()) for schedule in finalists)
    timings = {}
    if though_none_was_right or right(searched.tried):
        timings = session.workers.finals(Finals(candidates, session.final_seconds, FINAL_ROUNDS))
    if not timings:
        raise NothingMeasuredError(spec=spec.key(), reasons=_why_nothing(searched))
    by_key = {finalists[place].key(): timing for place, timing in timings.items()}
    default = searched.space.default
    return by_key, judge(by_key, default.key(), {each.key(): changes(each, default) for each in finalists})


def finalists_of(searched: Searched) -> list[Schedule]:
    """The default, and the best `FINALISTS` of the others."""
    best = [searched.space.at(settings) for _, settings in right(searched.tried)]
    others = [schedule for schedule in best if schedule != searched.space.default]
    return [searched.space.default, *others[:FINALISTS]]


def _why_nothing(searched: Searched) -> str:
    if right(searched.tried):
        return "none was right when the best were measured again"
    reasons = Counter(f"{each.outcome.value}: {each.reason}" for each in searched.tried)
    return "; ".join(f"{reason} ({count} times)" for reason, count in reasons.most_common(2)) or "none was tried"


def judge(timings: Mapping[str, Timing], default: str, changes: Mapping[str, int] | None = None) -> Verdict:
    """The fastest of `timings` if it beats `default` by more than the noise, else `default`.

    Where the default is not among `timings`, because it was not right, the fastest wins.

    Args:
        timings: by key; sample i of all was taken in the same round.
        default: key of the default.
        changes: in how many settings each differs from the default. Of candidates that beat the default and that the
            fastest does not beat beyond the noise, the one with fewest changes wins.
    """
    if default not in timings:
        best = min(timings, key=lambda name: timings[name].seconds)
        return Verdict(best, 0.0, LEAST_GAIN, "the default schedule was not right here")
    rivals = {name: compared(timing, timings[default]) for name, timing in timings.items() if name != default}
    if not rivals:
        return Verdict(default, 0.0, LEAST_GAIN, "default kept: nothing else reached the finals")
    best = max(rivals, key=lambda name: rivals[name].gain)
    gain, noise = rivals[best].gain, rivals[best].noise
    if not rivals[best].certain:
        reason = f"default kept: the best other has {1 + gain:.2f}x its speed, noise {noise:.1%}"
        return Verdict(default, 0.0, noise, reason)
    chosen = _simplest(best, timings, rivals, changes or {})
    gain, noise = rivals[chosen].gain, rivals[chosen].noise
    simpler = "" if chosen == best else f"; simpler than one of {1 + rivals[best].gain:.2f}x that is not surely faster"
    return Verdict(chosen, gain, noise, f"{1 + gain:.2f}x the default's speed, noise {noise:.1%}{simpler}")


def compared(timing: Timing, other: Timing) -> Comparison:
    """How much faster `timing` is than `other`, round by round."""
    ratios = [slow / fast for slow, fast in zip(other.samples, timing.samples, strict=True)]
    gain = statistics.median(ratios) - 1.0
    return Comparison(gain, max(LEAST_GAIN, gain - (least_median(ratios) - 1.0)))


def least_median(values: Sequence[float]) -> float:
    """The lower end of the interval that holds the median of what `values` were drawn from, with `CONFIDENCE`.

    The bootstrap's percentile interval, of the same numbers for the same values.
    """
    chance = random.Random(0)
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(_RESAMPLES))
    return medians[int((1.0 - CONFIDENCE) / 2 * _RESAMPLES)]


def _simplest(
    best: str, timings: Mapping[str, Timing], rivals: Mapping[str, Comparison], changes: Mapping[str, int]
) -> str:
    simpler = [name for name in rivals if changes.get(name, 0) < changes.get(best, 0) and rivals[name].certain]
    for name in sorted(simpler, key=lambda name: (changes[name], -rivals[name].gain)):
        if not compared(timings[best], timings[name]).certain:
            return name
    return best
