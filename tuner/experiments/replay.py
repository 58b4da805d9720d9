"""Samplers on a recorded space: how many trials does each need until it has come within 5% of the best there is?

The recording is exhaustive, so nothing is compiled or measured, and the answer is exact for the machine it was made on.
Samplers begin without the default schedule and without earlier winners: what a search does better than these, it owes
to those.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.distributions import CategoricalDistribution

from codegen.errors import TrellisError
from tuner.space.legal import Settings
from tuner.space.sampler import FreshSampler
from tuning_db.regular_file import read_regular

MAX_BYTES = 64 * 2**20

RECORDED = Path(__file__).with_name("recorded_spaces.csv")
"""Every legal schedule of eight specs, measured; `docs/tuning.md` says on what and how."""

WITHIN = 1.05
SEEDS, AHEAD = 20, 2
SHARE, TRIALS = 0.15, 40

_SPACE, _TIME = "space", "microseconds"


class RecordingError(TrellisError, ValueError):
    """A file that is no recording of spaces."""

    message = "{path} is no recording of spaces: {problem}; its columns are space, one for each setting, microseconds"


@dataclass(frozen=True)
class RecordedSpace:
    """All points of one space and what each was measured to take.

    Attributes:
        name: of the space.
        points: every legal point.
        seconds: of one call, for each.
    """

    name: str
    points: tuple[Settings, ...]
    seconds: tuple[float, ...]

    @property
    def allowed(self) -> int:
        """The most trials that a sampler worth its place needs: 15% of the space, or 40 if that is more."""
        return max(TRIALS, int(SHARE * len(self.points)))

    def distributions(self) -> dict[str, CategoricalDistribution]:
        """The box that holds the points."""
        names = self.points[0]
        return {
            name: CategoricalDistribution(tuple(dict.fromkeys(point[name] for point in self.points))) for name in names
        }


@dataclass(frozen=True)
class Replayed:
    """One sampler on one space.

    Attributes:
        space, sampler: which.
        points: size of the space.
        allowed: see `RecordedSpace.allowed`.
        trials: needed, for each seed.
    """

    space: str
    sampler: str
    points: int
    allowed: int
    trials: tuple[int, ...]

    @property
    def median(self) -> float:
        """Trials needed, the middle one."""
        return statistics.median(self.trials)

    @property
    def ninth(self) -> float:
        """Trials that suffice in nine of ten searches."""
        if len(self.trials) == 1:
            return self.trials[0]
        return statistics.quantiles(self.trials, n=10, method="inclusive")[8]


def read_spaces(path: Path = RECORDED) -> tuple[RecordedSpace, ...]:
    """The spaces of a recording.

    Raises:
        RecordingError: it cannot be read, or holds something else.
    """
    rows: dict[str, list[tuple[Settings, float]]] = {}
    try:
        text = read_regular(path, MAX_BYTES).decode()
        for row in csv.DictReader(io.StringIO(text, newline="")):
            name, seconds = row.pop(_SPACE), float(row.pop(_TIME)) * 1e-6
            if not 0.0 < seconds < math.inf:
                raise ValueError(f"a time of {seconds} s in {name}")
            rows.setdefault(name, []).append(({key: _value(value) for key, value in row.items()}, seconds))
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise RecordingError(path=path, problem=f"{type(error).__name__}: {error}") from error
    if not rows:
        raise RecordingError(path=path, problem="it is empty")
    return tuple(RecordedSpace(name, *zip(*measured, strict=True)) for name, measured in rows.items())


def replay(
    spaces: Sequence[RecordedSpace], samplers: Sequence[str], seeds: int, show: Callable[[Replayed], None]
) -> list[Replayed]:
    """Each sampler on each space, with seeds 0 to `seeds` - 1; `show` is told each as it is done.

    As on two cores, two candidates are compiled while one is measured, so that a proposal knows not of the last two.
    """
    done = []
    for space in spaces:
        for sampler in samplers:
            trials = tuple(trials_needed(space, sampler, seed, AHEAD) for seed in range(seeds))
            done.append(Replayed(space.name, sampler, len(space.points), space.allowed, trials))
            show(done[-1])
    return done


def trials_needed(space: RecordedSpace, sampler: str, seed: int, ahead: int = 0) -> int:
    """How many points are measured until one is within 5% of the best, `ahead` more being begun meanwhile."""
    goal = WITHIN * min(space.seconds)
    for count, seconds in enumerate(_search(space, sampler, seed, ahead), start=1):
        if seconds <= goal:
            return count
    raise AssertionError("all points were tried, and the best is one of them")


def _search(space: RecordedSpace, sampler: str, seed: int, ahead: int) -> Iterator[float]:
    distributions = space.distributions()
    seconds_of = {tuple(point.items()): seconds for point, seconds in zip(space.points, space.seconds, strict=True)}
    study = optuna.create_study(sampler=FreshSampler(space.points, distributions, seed, sampler))
    begun: deque[optuna.Trial] = deque()
    for asked in range(len(space.points) + ahead):
        if asked < len(space.points):
            begun.append(study.ask(dict(distributions)))
        if asked >= ahead:
            trial = begun.popleft()
            seconds = seconds_of[tuple((name, trial.params[name]) for name in space.points[0])]
            study.tell(trial, seconds)
            yield seconds


def _value(text: str) -> int | str:
    return int(text) if text.isdigit() else text
