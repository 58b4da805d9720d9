"""Plots of a search and of the front of slots; Optuna's own where it has them."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import optuna
import plotly.graph_objects as go
from optuna.exceptions import ExperimentalWarning
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial
from optuna.visualization import plot_optimization_history, plot_param_importances
from plotly.offline import get_plotlyjs

from tuner.records.history import History
from tuner.studies.studies import measured
from tuning_db import Recommendation

_LEAST_FOR_IMPORTANCES = 4


@dataclass(frozen=True)
class Figure:
    """A plot: the id of its place on the page, and plotly's data and layout."""

    id: str
    drawn: dict[str, Any]


def plotly_script() -> str:
    """The JavaScript of plotly."""
    script: str = get_plotlyjs()
    return script


def of_study(name: str, history: History) -> Iterator[Figure]:
    """How the search went, which settings mattered, and how candidates failed, as far as there was a search."""
    right = _alike(measured(history.trials()))
    if right:
        # Of trials that can be compared, without what else may be in a study.
        study = optuna.create_study()
        study.add_trials(sorted(right, key=lambda trial: trial.number))
        yield _figure(f"{name}-history", plot_optimization_history(study, target_name="seconds"), "search")
        varied = {key for trial in right for key in trial.params if len({other.params[key] for other in right}) > 1}
        if len(right) >= _LEAST_FOR_IMPORTANCES and varied:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                plot = plot_param_importances(study, evaluator=PedAnovaImportanceEvaluator(), params=sorted(varied))
            plot.update_yaxes(title=None)
            yield _figure(f"{name}-importances", plot, "settings that mattered")
    if failures := history.failures():
        incoming = go.Bar(x=[kind.value for kind in failures], y=list(failures.values()))
        yield _figure(f"{name}-failures", go.Figure([incoming]), "failures by kind")


def _alike(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Those that most have the settings of, and one value."""
    single = [trial for trial in trials if len(trial.values) == 1]
    kinds = Counter(str(sorted(trial.distributions.items())) for trial in single)
    if not kinds:
        return []
    usual, _ = kinds.most_common(1)[0]
    return [trial for trial in single if str(sorted(trial.distributions.items())) == usual]


def of_front(name: str, recommendation: Recommendation) -> Figure:
    """Time per token against recall, a point for each slot count and chunk size that no other beats."""
    rows = recommendation.front
    chosen = [(row.slots, row.chunk) == (recommendation.slots, recommendation.chunk) for row in rows]
    points = go.Scatter(
        x=[row.seconds_per_token * 1e6 for row in rows],
        y=[row.recall for row in rows],
        mode="markers+text",
        text=[f"M{row.slots} C{row.chunk}" for row in rows],
        textposition="bottom right",
        marker={"size": [16 if each else 9 for each in chosen]},
    )
    plot = go.Figure([points])
    plot.update_layout(xaxis_title="microseconds per token", yaxis_title="recall", xaxis_type="log")
    return _figure(name, plot, "time against recall")


def _figure(name: str, plot: go.Figure, title: str) -> Figure:
    plot.update_layout(title=title, showlegend=False, autosize=True, margin={"l": 40, "r": 20, "t": 50, "b": 50})
    plot.update_xaxes(automargin=True)
    plot.update_yaxes(automargin=True)
    drawn: dict[str, Any] = json.loads(plot.to_json())
    drawn["layout"].pop("template", None)
    return Figure(name, {"data": drawn["data"], "layout": drawn["layout"]})
