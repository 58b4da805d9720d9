"""Trials that cannot be what this tuner wrote: anyone who may write a storage may have put anything into it.

Such a trial counts as failed and as not tried, so that it stops neither a search nor a report; its rows stay as they
are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tuner.studies.telling import RELEASED
from tuning_db import Outcome, shortened

DAMAGE = "damage"
"""User attribute of what stands in place of a damaged trial: why it is one."""

_OUTCOMES = {outcome.value for outcome in Outcome}
_REASON = 300


@dataclass(frozen=True)
class Expected:
    """What the trials of one study must be.

    Attributes:
        directions: one for each value.
        is_legal: whether a point is one of the space that is searched, its types included.
        read: makes of a complete trial what the study is for; raises if it lacks something.
    """

    directions: tuple[StudyDirection, ...]
    is_legal: Callable[[Mapping[str, Any]], bool]
    read: Callable[[FrozenTrial], object] | None = None


def in_place_of(trial_id: int, number: object, reason: str) -> FrozenTrial:
    """A failed trial that holds no point, to stand where a damaged one is."""
    return FrozenTrial(
        # Trials are sorted by number, and told apart by it.
        number=number if type(number) is int else -1 - trial_id,
        state=TrialState.FAIL,
        value=None,
        datetime_start=None,
        datetime_complete=datetime.fromtimestamp(0),
        params={},
        distributions={},
        user_attrs={RELEASED: True, DAMAGE: shortened(reason, _REASON)},
        system_attrs={},
        intermediate_values={},
        trial_id=trial_id,
    )


def why_damaged(trial: FrozenTrial, expected: Expected | None) -> str | None:
    """What a trial holds that no search writes, in one sentence; None if it is as it should be.

    Raises:
        Exception: whatever `expected.read` does.
    """
    if type(trial.number) is not int:
        return f"its number is {trial.number!r}"
    outcome = trial.user_attrs.get("outcome", Outcome.ok.value)
    if not isinstance(outcome, str) or outcome not in _OUTCOMES:
        return f"its outcome is {outcome!r}"
    if not isinstance(trial.user_attrs.get("reason", ""), str):
        return "its reason is no text"
    if not isinstance(trial.system_attrs.get("fixed_params", {}), dict):
        return "the point it is to try is none"
    history = trial.system_attrs.get("retry_history", [])
    if not isinstance(history, list) or any(type(number) is not int for number in history):
        return "its history is no list of trials"
    if trial.state is TrialState.COMPLETE and not _are_numbers(trial.values):
        return f"its values are {trial.values!r}"
    return None if expected is None else _why_unexpected(trial, expected)


def _why_unexpected(trial: FrozenTrial, expected: Expected) -> str | None:
    if trial.state is TrialState.COMPLETE:
        if len(trial.values) != len(expected.directions) or not trial.values[0] > 0.0:
            return f"its values are {trial.values!r}"
        if trial.user_attrs.get("outcome") != Outcome.ok.value:
            return "it has a time and no outcome that allows one"
    # Of a trial that runs the settings are written one after another.
    if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and not expected.is_legal(trial.params):
        return f"its settings are none of the space: {trial.params!r}"
    if trial.state is TrialState.COMPLETE and expected.read is not None:
        expected.read(trial)
    if trial.state is TrialState.WAITING:
        point = trial.system_attrs.get("fixed_params", trial.params)
        return None if expected.is_legal(point) else f"the point it is to try is none of the space: {point!r}"
    return None


def _are_numbers(values: object) -> bool:
    return isinstance(values, list) and all(type(value) in (int, float) and math.isfinite(value) for value in values)
