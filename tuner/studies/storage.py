"""Optuna's storage in a database, where a damaged row costs one trial: neither the study nor whoever reads it.

Optuna builds all trials of a study at once, and ends with the first row that it cannot build. The methods that it reads
rows by are replaced here; `tests/tuner/studies/test_damaged_studies.py` fails should a later Optuna call others.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Container, Iterator, Sequence
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

from tuner.studies.damaged_trials import Expected, in_place_of, why_damaged
from tuning_db import shortened

# What a row may make Optuna, SQLAlchemy and json raise. A connection that is lost is none of these.
_DAMAGE = (ValueError, TypeError, LookupError, ArithmeticError, AssertionError, RecursionError)


class StudyStorage(RDBStorage):
    """An `RDBStorage`; a trial that cannot be read, or is none of the study, is one that failed and released its point.

    A warning says so once for each study.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self._expected: dict[int, Expected] = {}
        self._warned: set[int] = set()
        super().__init__(*arguments, **settings)

    def expect(self, study_name: str, expected: Expected) -> None:
        """From now on, what is `expected` decides which trials of a study count."""
        self._expected[self.get_study_id_from_name(study_name)] = expected

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """As Optuna has it, a damaged one replaced."""
        try:
            return super().get_trial(trial_id)
        except Exception as error:
            rows = self._rows("trial_id", trial_id)
            if not rows or not _is_damage(error):
                raise
            return self._damaged(*rows[0], _said(error))

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """As Optuna has it; those that are expected of a study where its rows say others."""
        expected = self._expected.get(study_id)
        try:
            directions = super().get_study_directions(study_id)
        except Exception as error:
            if not _is_damage(error):
                raise
            directions = []
        if expected is not None:
            return list(expected.directions)
        return directions or [StudyDirection.MINIMIZE]

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Those that can be read."""
        return dict(self._attributes("study_user_attributes", study_id))

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Those that can be read."""
        return dict(self._attributes("study_system_attributes", study_id))

    def get_all_studies(self) -> list[FrozenStudy]:
        """As Optuna has it, of what can be read."""
        with self.engine.connect() as connection:
            found = connection.execute(sqlalchemy.text("SELECT study_id, study_name FROM studies ORDER BY study_id"))
            studies = [(study, name) for study, name in found if isinstance(name, str)]
        return [
            FrozenStudy(
                study_name=name,
                direction=None,
                directions=self.get_study_directions(study),
                user_attrs=self.get_study_user_attrs(study),
                system_attrs=self.get_study_system_attrs(study),
                study_id=study,
            )
            for study, name in studies
        ]

    def _build_frozen_trial_from_trial_model(self, trial: models.TrialModel) -> FrozenTrial:
        row: Any = trial  # SQLAlchemy's types say what a class has, not an object.
        try:
            built: FrozenTrial = super()._build_frozen_trial_from_trial_model(trial)
            reason = why_damaged(built, self._expected.get(row.study_id))
        except _DAMAGE as error:
            reason = _said(error)
        if reason is not None:
            return self._damaged(row.trial_id, row.number, row.study_id, reason)
        if "reason" in built.user_attrs:
            built.user_attrs["reason"] = shortened(built.user_attrs["reason"])
        return built

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        try:
            found: list[FrozenTrial] = super()._get_trials(study_id, states, included_trial_ids, trial_id_greater_than)
            return found
        except Exception as error:
            if not _is_damage(error):
                raise
        self.get_study_name_from_id(study_id)  # Raises for a study that is not there, which is no damage.
        ids = [trial_id for trial_id, _, _ in self._rows("study_id", study_id)]
        wanted = [each for each in ids if each in included_trial_ids or each > trial_id_greater_than]
        trials = [self.get_trial(trial_id) for trial_id in wanted]
        return [trial for trial in trials if states is None or trial.state in states]

    def _set_trial_param_without_commit(
        self,
        session: Any,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
        previous_distribution: BaseDistribution | None = None,
    ) -> None:
        # Optuna compares with the first row of the study. The studies' names make sure that spaces are alike.
        super()._set_trial_param_without_commit(
            session, trial_id, param_name, param_value_internal, distribution, previous_distribution or distribution
        )

    def _rows(self, column: str, value: int) -> Sequence[tuple[int, object, int]]:
        """Identifier, number and study of the trials where `column` has `value`, whatever else their rows hold."""
        text = f"SELECT trial_id, number, study_id FROM trials WHERE {column} = :value ORDER BY trial_id"
        with self.engine.connect() as connection:
            found = connection.execute(sqlalchemy.text(text), {"value": value}).all()
        return [(trial_id, number, study_id) for trial_id, number, study_id in found]

    def _attributes(self, table: str, study_id: int) -> Iterator[tuple[str, Any]]:
        self.get_study_name_from_id(study_id)
        text = f"SELECT key, value_json FROM {table} WHERE study_id = :study"
        if self.engine.dialect.name == "mysql":
            text = text.replace("key,", "`key`,")
        with self.engine.connect() as connection:
            rows = connection.execute(sqlalchemy.text(text), {"study": study_id}).all()
        for key, value in rows:
            try:
                yield key, json.loads(value)
            except _DAMAGE as error:
                self._warn(study_id, f"its attribute {key!r} cannot be read ({_said(error)})")

    def _damaged(self, trial_id: int, number: object, study_id: int, reason: str) -> FrozenTrial:
        self._warn(study_id, f"trial {number} counts as not tried: {reason}")
        return in_place_of(trial_id, number, reason)

    def _warn(self, study_id: int, what: str) -> None:
        if study_id in self._warned:
            return
        self._warned.add(study_id)
        warnings.warn(f"study {study_id} of this storage is damaged: {shortened(what, 300)}", stacklevel=2)


def _is_damage(error: BaseException) -> bool:
    """Whether it was what a row holds that made this, and not the way to it."""
    if isinstance(error, optuna.exceptions.StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, sqlalchemy.exc.StatementError):
        # SQLite takes any bytes for text, and its driver cannot read them.
        return "decode to UTF-8" in str(error.orig) or isinstance(error.orig, _DAMAGE)
    return isinstance(error, _DAMAGE)


def _said(error: BaseException) -> str:
    return shortened(f"{type(error).__name__}: {error}", 200)
