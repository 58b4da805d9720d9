"""What became of a trial, told to its study unless others have given it up meanwhile.

A process that is silent for too long is declared dead, and its trials are tried by others. If it lives after all, what
it has to say about them comes too late. It drops them, and goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

RELEASED = "released"
"""User attribute of trials that ended because they were interrupted, or because another one has their point."""


def tell(
    study: optuna.Study,
    trial: optuna.Trial,
    attributes: Mapping[str, Any],
    *,
    values: float | Sequence[float] | None = None,
    state: TrialState = TrialState.COMPLETE,
) -> bool:
    """End a running trial; False if others have ended it before, so that nothing of this counts."""
    try:
        for name, value in attributes.items():
            trial.set_user_attr(name, value)
        # Optuna completes a trial by itself where it is given values, and only then.
        told = study.tell(trial, values, state=None if state is TrialState.COMPLETE else state, skip_if_finished=True)
    except UpdateFinishedTrialError:
        return False  # It was ended between two of these calls.
    return bool(told.state is state)


def release(study: optuna.Study, trial: optuna.Trial) -> None:
    """Give the point of a running trial back, for no fault of its own."""
    tell(study, trial, {RELEASED: True}, state=TrialState.FAIL)


def fail(study: optuna.Study, number: int) -> None:
    """End a trial that nobody runs any more."""
    try:
        study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
    except UpdateFinishedTrialError:
        return  # Another process was faster, to the same end.


def is_given_up(study: optuna.Study, trial: optuna.Trial) -> bool:
    """Whether others have ended a trial that runs here."""
    return bool(study._storage.get_trial(trial._trial_id).state is not TrialState.RUNNING)


def ended(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that came to an end, right or not; what was interrupted or given up did not."""
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    return [trial for trial in trials if trial.state in states and "outcome" in trial.user_attrs]
