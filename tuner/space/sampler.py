"""Samplers of Optuna, held to what is legal and was not tried before."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, GPSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from tuner.space.space import Space
from tuner.studies.telling import RELEASED

Point = Mapping[str, Any]

# Few candidates per draw: the best of many is nearly always the point that leads already, which was tried.
_CANDIDATES = 6
# A Gaussian process proposes the same point again until it learns something.
_DRAWS = {"tpe": 16, "gp": 1}
_STARTUP_TRIALS = 5
_TAKEN = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING, TrialState.WAITING)

SAMPLERS = ("random", "tpe", "gp")
"""What may propose points; "gp" needs the package scipy."""


def default_sampler() -> str:
    """What `python -m tuner replay` found to need fewest trials, of those that can run here."""
    return "gp" if importlib.util.find_spec("scipy") else "tpe"


MOST_DEATHS = 2
"""A point is given up after the process that tried it died this often."""


def distributions_of(space: Space) -> dict[str, CategoricalDistribution]:
    """A box that contains `space`, for Optuna. Not all of a box is legal: `FreshSampler` proposes only what is."""
    return {name: CategoricalDistribution(values) for name, values in space.choices().items()}


class FreshSampler(BaseSampler):
    """Draws from a sampler until a point is legal and untried; takes an untried neighbour of the best if it finds none.

    A box of categorical values contains illegal points, and a sampler alone repeats itself, TPE about once in five
    trials, so neither is left to chance. The points are few enough to list. Neighbours, those that differ from the best
    point so far in fewest fields, also come before a sampler knows enough: the first trial is a default that was chosen
    with care.

    Args:
        points: every legal point.
        distributions: a box that contains them.
        seed: of the sampler, and of the choice among neighbours.
        kind: one of `SAMPLERS`; "random" takes any untried point, and no neighbour before another.
    """

    def __init__(
        self,
        points: Sequence[Point],
        distributions: Mapping[str, CategoricalDistribution],
        seed: int,
        kind: str = "tpe",
    ) -> None:
        self._points = tuple(points)
        self._distributions = distributions
        self._random = random.Random(seed)
        self._kind = kind
        self._inner = _sampler(kind, seed)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The fields that have more than one legal value."""
        return {name: values for name, values in self._distributions.items() if not values.single()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """A legal point that no other trial of the study has; any legal one if none is left."""
        fresh = untried(study, self._points, besides=trial.number) or list(self._points)
        if self._inner is None:
            chosen = self._random.choice(fresh)
            return {name: chosen[name] for name in search_space}
        for _ in range(_DRAWS[self._kind]):
            drawn = self._inner.sample_relative(study, trial, search_space)
            if not drawn:
                break
            for point in fresh:
                if all(point[name] == value for name, value in drawn.items()):
                    return drawn
        chosen = self._random.choice(_nearest(study, fresh))
        return {name: chosen[name] for name in search_space}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Never needed: every field is either fixed, or in the relative space."""
        raise RuntimeError(f"{param_name} is no field of the search space")


def _sampler(kind: str, seed: int) -> BaseSampler | None:
    if kind == "random":
        return None
    if kind == "gp":
        return GPSampler(seed=seed, n_startup_trials=_STARTUP_TRIALS, deterministic_objective=False)
    return TPESampler(
        seed=seed,
        n_startup_trials=_STARTUP_TRIALS,
        n_ei_candidates=_CANDIDATES,
        multivariate=True,
        constant_liar=False,
    )


def _nearest(study: optuna.Study, points: list[Point]) -> list[Point]:
    """Those of `points` nearest to the best one so far; all of them if there is none, or more than one objective."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not done or len(study.directions) > 1:
        return points
    best = min(done, key=lambda trial: trial.value or 0.0).params
    distances = [sum(point[name] != value for name, value in best.items()) for point in points]
    return [point for point, distance in zip(points, distances, strict=True) if distance == min(distances)]


def untried(study: optuna.Study, points: Sequence[Point], besides: int | None = None) -> list[Point]:
    """The points that no trial holds, whether measured, failed, running or waiting; trial `besides` does not count.

    A trial that was interrupted holds nothing, so that its point comes again; one whose process died comes again once.
    """
    trials = study.get_trials(deepcopy=False)
    taken = [held_point(trial) for trial in trials if trial.state in _TAKEN and trial.number != besides]
    died = [trial.params for trial in trials if trial.state is TrialState.FAIL and RELEASED not in trial.user_attrs]
    return [point for point in points if point not in taken and died.count(dict(point)) < MOST_DEATHS]


def held_point(trial: FrozenTrial) -> Point:
    """The point of a trial, also of one that only waits to be run."""
    fixed: Point | None = trial.system_attrs.get("fixed_params")
    return trial.params if fixed is None else fixed
