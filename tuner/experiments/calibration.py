"""How far to trust the probe of `tuner.experiments.quality`: its order against that of models trained to recall.

The trained accuracies are those that `python -m trellis_ops.lm.recall` keeps, one JSON line for each model.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from codegen.errors import TrellisError
from codegen.rule import Rule
from tuner.experiments.quality import recall
from tuning_db.regular_file import UNREADABLE, read_regular

MAX_BYTES = 64 * 2**20

LEAST_POINTS = 3
"""So many models at least have an order worth comparing."""

SURE = 0.05
"""A correlation that chance would reach more often than this says nothing."""


class CalibrationError(TrellisError, ValueError):
    """A file without results to compare the probe with."""

    message = "{path} cannot calibrate the probe: {problem}; name a file of results that `trellis_ops.lm.recall` keeps"


@dataclass(frozen=True)
class Point:
    """One slot count, chunk size and map.

    Attributes:
        phi, slots, chunk, dim: of the model; dim is D.
        trained: share of queries that trained models answered, mean over numbers of pairs and seeds.
        probe: what `tuner.experiments.quality.recall` gives for the same.
    """

    phi: str
    slots: int
    chunk: int
    dim: int
    trained: float
    probe: float


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation over `count` points; `chance` is how often unrelated ranks would be as far from 0."""

    count: int
    rho: float
    chance: float


def read_points(path: Path) -> list[Point]:
    """The trained accuracies in the file at `path`, each beside the probe.

    Raises:
        CalibrationError: it has fewer than three results of recall.
    """
    accuracies: dict[tuple[str, float, int, int, int], list[float]] = defaultdict(list)
    try:
        results: list[Any] = [msgspec.json.decode(line) for line in read_regular(path, MAX_BYTES).splitlines()]
        for result in results:
            cell = result["cell"]
            if cell["task"] == "recall":
                key = (cell["phi"], cell["phi_eps"], cell["slots"], cell["chunk"], cell["dim"])
                accuracies[key].append(statistics.fmean(result["accuracy"].values()))
    except (OSError, *UNREADABLE, KeyError, TypeError, AttributeError) as error:
        raise CalibrationError(path=path, problem=repr(error)) from error
    if len(accuracies) < LEAST_POINTS:
        raise CalibrationError(
            path=path, problem=f"it has {len(accuracies)} different models, {LEAST_POINTS} are needed"
        )
    return [_point(*key, statistics.fmean(shares)) for key, shares in sorted(accuracies.items())]


def _point(phi: str, phi_eps: float, slots: int, chunk: int, dim: int, trained: float) -> Point:
    probe = recall(slots, chunk, dim=dim, rule=Rule(phi, phi_eps=phi_eps))
    return Point(phi, slots, chunk, dim, trained, probe)


def correlation(points: Sequence[Point]) -> Correlation:
    """How well the probe orders `points` as training does."""
    from scipy.stats import spearmanr

    found = spearmanr([point.trained for point in points], [point.probe for point in points])
    return Correlation(len(points), float(found.statistic), float(found.pvalue))


def verdict(found: Correlation) -> str:
    """What a correlation allows one to say, in a sentence."""
    figure = f"rank correlation {found.rho:+.2f} over {found.count} models (chance {found.chance:.2f})"
    if found.chance > SURE or found.rho <= 0:
        return f"{figure}: these models do not show that the probe orders slots and chunks as training does"
    if found.rho < 0.7:
        return f"{figure}: a rough guide to the order, no more"
    return f"{figure}: the probe orders slots and chunks much as training does"
