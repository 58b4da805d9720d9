"""What is known of one spec: the record of its winner, and the study that found it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial

from tuner.search.standing import standings
from tuner.studies.studies import measured, outcomes
from tuner.studies.telling import ended
from tuning_db import Outcome, Record, Store


@dataclass(frozen=True)
class History:
    """One winner and where it comes from.

    Attributes:
        record: as the database holds it.
        layer: "user" or "shipped".
        study: what was tried for it; None if this storage has no such study, as for a winner that was shipped.
        passed_over: why no call takes it; None if it is in effect.
    """

    record: Record
    layer: str
    study: optuna.Study | None
    passed_over: str | None = None

    def trials(self) -> list[FrozenTrial]:
        """The trials of the study that came to an end, in order."""
        if self.study is None:
            return []
        return ended(self.study.get_trials(deepcopy=False))

    def failures(self) -> Counter[Outcome]:
        """How many trials ended how, `ok` left out."""
        return Counter({kind: count for kind, count in outcomes(self.trials()).items() if kind is not Outcome.ok})

    def second(self) -> FrozenTrial | None:
        """The fastest right trial with another schedule than the winner."""
        return next((trial for trial in measured(self.trials()) if not self.won(trial)), None)

    def won(self, trial: FrozenTrial) -> bool:
        """Whether a trial had the winner's schedule."""
        return trial.params == self.record.schedule

    def winner(self) -> FrozenTrial | None:
        """The trial of the winner's schedule."""
        return next((trial for trial in measured(self.trials()) if self.won(trial)), None)


def histories(store: Store, storage: RDBStorage, device: str | None) -> list[History]:
    """The winner of every spec known for a device, or for all, with its study; one in effect before others."""
    own = {record.identity() for record in store.records(device, "user")}
    studies = _studies(storage)
    return [
        History(
            standing.record,
            "user" if standing.record.identity() in own else "shipped",
            _study_of(standing.record, studies),
            standing.passed_over,
        )
        for standing in standings(store.records(device))
    ]


def _studies(storage: RDBStorage) -> list[optuna.Study]:
    names = optuna.get_all_study_names(storage)
    return [optuna.load_study(study_name=name, storage=storage) for name in names]


def _study_of(record: Record, studies: Sequence[optuna.Study]) -> optuna.Study | None:
    """The study of the record's spec, device, backend, templates, compiler and policy; of several the longest."""
    wanted = {name: getattr(record, name) for name in ("spec", "device", "backend", "template_digest")}
    fitting = [
        study
        for study in studies
        if all(study.user_attrs.get(name) == value for name, value in wanted.items()) and _measured_alike(record, study)
    ]
    return max(fitting, key=lambda study: len(study.get_trials(deepcopy=False)), default=None)


def _measured_alike(record: Record, study: optuna.Study) -> bool:
    """Whether times of a study can stand beside those of a record, as far as the record says how it was made."""
    policy = record.policy.partition(":")[0]
    if policy and study.user_attrs.get("policy") != policy:
        return False
    versions = (part.partition(" ") for part in str(study.user_attrs.get("toolchain", "")).split(", "))
    return all(record.toolchain.get(name, version) == version for name, _, version in versions)
