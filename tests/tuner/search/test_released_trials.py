"""No trial stays RUNNING after its search, however that ends; workers pretend, study and storage are real."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError

from codegen.device import cpu
from tests.tuner.conftest import UPDATE
from tests.tuner.studies.fleet.member import PretendingWorkers
from tuner.budget import Budget
from tuner.errors import StudyError
from tuner.search import study as studied
from tuner.search.study import StudySession, search_study
from tuner.studies.studies import open_storage
from tuner.studies.telling import RELEASED, fail
from tuning_db import Store

GONE = OperationalError("statement", {}, Exception("the storage is gone"))


@pytest.fixture
def pretending(tmp_path: Path, store: Store) -> Iterator[StudySession]:
    storage = open_storage(f"sqlite:///{tmp_path / 'studies.db'}")
    workers = PretendingWorkers(0.0, ahead=3)
    yield StudySession(cpu(), "tvm", store, Budget(trials=10), workers, storage=storage)
    storage.engine.dispose()


def trials(session: StudySession) -> list[optuna.trial.FrozenTrial]:
    (name,) = optuna.get_all_study_names(session.storage)
    return optuna.load_study(study_name=name, storage=session.storage).trials


def states(session: StudySession) -> list[TrialState]:
    return [trial.state for trial in trials(session)]


def test_a_storage_that_fails_after_others_gave_a_trial_up_is_a_study_error(pretending, monkeypatch):
    given_up = []

    def fail_silent(study, storage):
        running = study.get_trials(states=(TrialState.RUNNING,))
        if given_up:
            raise GONE
        if len(running) > 1:
            given_up.append(running[-1].number)
            fail(study, running[-1].number)

    monkeypatch.setattr(studied, "fail_silent_trials", fail_silent)
    with pytest.raises(StudyError, match="the storage is gone"):
        search_study(UPDATE, pretending)
    assert given_up
    assert states(pretending).count(TrialState.FAIL) >= 2
    assert TrialState.RUNNING not in states(pretending)


def test_every_trial_is_released_though_the_release_of_one_fails(pretending, monkeypatch):
    released = []

    def interrupted(job):
        raise KeyboardInterrupt

    def release(study, trial):
        released.append(trial.number)
        if len(released) == 1:
            raise GONE
        fail(study, trial.number)

    monkeypatch.setattr(PretendingWorkers, "evaluate", lambda self, job: interrupted(job))
    monkeypatch.setattr(studied, "release", release)
    with pytest.raises(StudyError, match="the storage is gone"):
        search_study(UPDATE, pretending)
    assert len(released) == 4
    assert [trial.number for trial in trials(pretending) if trial.state is TrialState.RUNNING] == released[:1]


def test_a_trial_whose_telling_is_interrupted_is_released(pretending, monkeypatch):
    def interrupted(study, trial, attributes, **how):
        raise KeyboardInterrupt

    monkeypatch.setattr(studied, "tell", interrupted)
    with pytest.raises(KeyboardInterrupt):
        search_study(UPDATE, pretending)
    assert all(trial.user_attrs[RELEASED] for trial in trials(pretending))
    assert states(pretending) == [TrialState.FAIL] * 4
