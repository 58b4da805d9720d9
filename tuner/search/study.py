"""A search as an Optuna study: the default, earlier winners, then what Optuna's sampler proposes.

The study is continued by later runs, and may be shared with processes elsewhere. A trial that others have given up
meanwhile, taking this process for dead, is theirs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import optuna
import sqlalchemy.exc
from optuna.exceptions import OptunaError
from optuna.trial import FrozenTrial, TrialState

from codegen.errors import TrellisError
from codegen.schedules.registry import from_settings
from codegen.schedules.schedule import Schedule
from codegen.spec import Spec, bucket
from tuner.budget import Budget
from tuner.search.known_failures import KnownFailures
from tuner.search.search import Searched, Status, search
from tuner.search.strategy import Proposal, Tried
from tuner.session import Session
from tuner.space.legal import Settings
from tuner.space.sampler import FreshSampler, default_sampler, distributions_of, held_point, untried
from tuner.space.space import Space, space_of
from tuner.studies.shared_storage import Heart, fail_silent_trials, one_at_a_time, others_run
from tuner.studies.storage import StudyStorage
from tuner.studies.studies import open_study, release_lost_trials, study_key, take, unusable
from tuner.studies.telling import ended, is_given_up, release, tell
from tuner.workers.worker import Result
from tuning_db import Outcome

_WINNERS_FIRST = 4
_UNTIL_OTHERS_END = 0.5  # Seconds between two looks at what processes elsewhere still run.


@dataclass(frozen=True)
class StudySession(Session):
    """A session whose searches are studies.

    Attributes:
        storage: of the studies.
    """

    storage: StudyStorage = field(kw_only=True)


def search_study(
    spec: Spec,
    session: StudySession,
    show: Callable[[Status], None] = lambda status: None,
    *,
    budget: Budget | None = None,
    seed: int | None = None,
) -> Searched:
    """Search for `spec` in its study; `tuner.search.search.search` has the rest.

    Args:
        spec, session, show, budget: of the search.
        seed: of the sampler; decided by the space unless given.

    Raises:
        StudyError: the storage failed.
        WorkerError: workers cannot be started.
        KeyboardInterrupt: passed on after the running trials were released.
    """
    try:
        with Heart(session.storage) as heart:
            return search(spec, session, StudyStrategy(spec, session, heart, seed), show, budget=budget)
    except (sqlalchemy.exc.SQLAlchemyError, OptunaError) as error:
        raise unusable(session.storage.url, error) from error


class StudyStrategy:
    """The study of `spec`, opened; made if there is none. `heart` beats for the trials that run."""

    def __init__(self, spec: Spec, session: StudySession, heart: Heart, seed: int | None = None) -> None:
        self.space = space_of(spec, session.backend, session.device)
        self._storage, self._heart = session.storage, heart
        self._points = [schedule.settings() for schedule in self.space.schedules.values()]
        self._distributions = distributions_of(self.space)
        self._failures = KnownFailures(spec, session)
        self._running: dict[int, optuna.Trial] = {}
        key = study_key(spec, session.backend, session.device, self.space, session.policy)
        seed = int(key.space_digest[:8], 16) if seed is None else seed
        sampler = FreshSampler(self._points, self._distributions, seed, default_sampler())
        self._study = open_study(session.storage, key, sampler, self.space.has)
        with one_at_a_time(session.storage, self._study.study_name):
            self._enqueue([self.space.default, *_earlier_winners(spec, session, self.space)])

    def tried(self) -> list[Tried]:
        """The trials that came to an end, right or not."""
        return [_tried(trial) for trial in ended(self._study.get_trials(deepcopy=False))]

    def untried(self) -> list[Settings]:
        """The points that no trial holds, and those that wait."""
        waiting = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        return [dict(point) for point in (*untried(self._study, self._points), *map(held_point, waiting))]

    def ask(self) -> Proposal | None:
        """The next trial; None if another has its point, or if it failed here before and is told so at once."""
        trial = take(self._study, self._storage, self._distributions)
        self._heart.beat_for([*self._running.values(), trial])
        if self._is_duplicate(trial):
            release(self._study, trial)
            return None
        failed = self._failures.result(trial.params)
        if failed is not None:
            _tell(self._study, trial, failed)
            return None
        self._running[trial.number] = trial
        return Proposal(trial.number, trial.params)

    def tell(self, proposal: Proposal, result: Result) -> None:
        """End a trial; what failed is known to later studies, too."""
        self._failures.note(proposal.settings, result)
        _tell(self._study, self._running[proposal.number], result)
        del self._running[proposal.number]

    def release(self, proposal: Proposal) -> None:
        """Give the point of a trial back, unless it has ended."""
        trial = self._running.pop(proposal.number, None)
        if trial is not None:
            release(self._study, trial)

    def still_wanted(self, running: Sequence[Proposal]) -> list[Proposal]:
        """All but those that others have ended, taking this process for dead; it does the same to silent processes."""
        fail_silent_trials(self._study, self._storage)
        lost = {number for number, trial in self._running.items() if is_given_up(self._study, trial)}
        for number in lost:
            del self._running[number]
        return [each for each in running if each.number not in lost]

    def wait_for_others(self) -> bool:
        """Whether a process elsewhere still works on a trial of a shared storage."""
        if not others_run(self._study, self._storage):
            return False
        release_lost_trials(self._study, self._storage)
        time.sleep(_UNTIL_OTHERS_END)
        return True

    def _enqueue(self, first: Sequence[Schedule]) -> None:
        fresh = untried(self._study, self._points)
        for settings in dict.fromkeys(tuple(schedule.settings().items()) for schedule in first):
            if dict(settings) in fresh:
                self._study.enqueue_trial(dict(settings))

    def _is_duplicate(self, trial: optuna.Trial) -> bool:
        # Another process may have taken the same point since the sampler looked; of the two the older trial keeps it.
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        others = self._study.get_trials(deepcopy=False, states=states)
        return any(other.number < trial.number and other.params == trial.params for other in others)


def _tried(trial: FrozenTrial) -> Tried:
    outcome, reason = Outcome(trial.user_attrs["outcome"]), str(trial.user_attrs.get("reason", ""))
    return Tried(trial.params, outcome, reason, trial.value if trial.state is TrialState.COMPLETE else None)


def _tell(study: optuna.Study, trial: optuna.Trial, result: Result) -> None:
    attributes: dict[str, object] = {
        "outcome": result.outcome.value,
        "reason": result.reason,
        "errors": {name: f"{error:.3e}" for name, error in result.errors.items()},
        "compile_seconds": round(result.compile_seconds, 3),
    }
    if result.outcome is Outcome.ok:
        tell(study, trial, attributes | {"spread": result.spread}, values=result.seconds)
    else:
        # TPE ranks pruned trials behind all others, and so learns to stay away.
        tell(study, trial, attributes, state=TrialState.PRUNED)


def _earlier_winners(spec: Spec, session: Session, space: Space) -> list[Schedule]:
    """What won for this spec or its bucket, here or elsewhere, with these templates or older ones; nearest first."""
    backend, device = session.backend, session.device
    related = [
        record
        for record in session.store.records()
        if record.backend == backend and (record.spec == spec.key() or record.bucket == bucket(spec).key())
    ]
    related.sort(key=lambda record: (record.device == device.key(), record.spec == spec.key(), record.recency()))
    winners = []
    for record in reversed(related):
        try:
            schedule = from_settings(backend, dict(record.schedule))
        except TrellisError:
            continue  # A record of another version's settings says nothing about this space.
        if schedule.key() in space.schedules:
            winners.append(schedule)
    return winners[:_WINNERS_FIRST]
