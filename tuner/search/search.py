"""Ask, evaluate, tell: one Optuna study per spec, until its budget or its space is used up."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial, TrialState

from codegen.errors import TrellisError
from codegen.schedules.registry import from_settings
from codegen.schedules.schedule import Schedule
from codegen.spec import Spec, bucket
from tuner.budget import Budget, Clock
from tuner.interruption import stop_if_interrupted
from tuner.search.known_failures import KnownFailures
from tuner.session import Session
from tuner.space.legal import Settings
from tuner.space.sampler import FreshSampler, Point, default_sampler, held_point, untried
from tuner.space.space import Space, space_of
from tuner.studies.shared_storage import Heart, fail_silent_trials, one_at_a_time, others_run
from tuner.studies.studies import measured, open_study, outcomes, release_lost_trials, study_key, take
from tuner.telling import ended, is_given_up, release, tell
from tuner.workers.pool import Job
from tuner.workers.worker import Candidate, Result
from tuning_db import Outcome

_WINNERS_FIRST = 4
_UNTIL_OTHERS_END = 0.5  # Seconds between two looks at what processes elsewhere still run.


@dataclass(frozen=True)
class Status:
    """How far a search has come.

    Attributes:
        trials: candidates that came to an end, earlier runs included.
        points: all there are.
        share: of the budget that is gone, or of the space if that is nearer its end.
        best: seconds of the fastest right one so far.
        default: seconds of the default schedule.
        failures: how many of the trials ended how, `ok` left out.
    """

    trials: int
    points: int
    share: float
    best: float | None
    default: float | None
    failures: Counter[Outcome]


@dataclass(frozen=True)
class Searched:
    """A search that came to its end.

    Attributes:
        space: what was searched.
        study: with every trial of this run and of earlier ones.
        exhausted: whether every point was tried.
    """

    space: Space
    study: optuna.Study
    exhausted: bool

    def trials(self) -> list[FrozenTrial]:
        """The trials that came to an end."""
        return ended(self.study.get_trials(deepcopy=False))


def search(
    spec: Spec,
    session: Session,
    show: Callable[[Status], None],
    *,
    budget: Budget | None = None,
    seed: int | None = None,
) -> Searched:
    """Try candidates for `spec`: the default, winners of earlier times and neighbours, then what the sampler proposes.

    A study that exists is continued. While one candidate is measured, the next few are compiled. Each is told to the
    study as soon as it ends, so that an interruption loses at most those that have begun; they come again at the next
    run. A trial that others have given up meanwhile, taking this process for dead, is theirs.

    Args:
        spec: what to search for.
        session: where, by whom, and how long unless `budget` says so.
        show: told how far it is, before each candidate.
        budget: instead of the session's.
        seed: of the sampler; decided by the space unless given.

    Raises:
        StudyError: the storage failed.
        WorkerError: workers cannot be started.
        KeyboardInterrupt: passed on after the running trials were released.
    """
    space = space_of(spec, session.backend, session.device)
    points = [schedule.settings() for schedule in space.schedules.values()]
    key = study_key(spec, session.backend, session.device, space, session.policy)
    seed = int(key.space_digest[:8], 16) if seed is None else seed
    sampler = FreshSampler(points, space.distributions, seed, default_sampler())
    study = open_study(session.storage, key, sampler, space.has)
    with one_at_a_time(session.storage, study.study_name):
        _enqueue(study, [space.default, *_earlier_winners(spec, session, space)], points)
    clock = Clock(budget or session.budget)
    with Heart(session.storage) as heart:
        running = _Running(study, spec, session, space, heart)
        try:
            while True:
                stop_if_interrupted()
                running.drop_given_up()
                fail_silent_trials(study, session.storage)
                status = _status(study, space, clock)
                show(status)
                wanted = _wanted(study, points, space, clock, status, len(running.trials))
                running.begin(wanted)
                if running.trials:
                    running.finish_one()
                elif not wanted and others_run(study, session.storage):
                    release_lost_trials(study, session.storage)
                    time.sleep(_UNTIL_OTHERS_END)
                elif not wanted:
                    return Searched(space, study, exhausted=not _open(study, points))
        finally:
            running.release()


def _open(study: optuna.Study, points: list[Settings]) -> list[Point]:
    return [*untried(study, points), *_waiting(study)]


def _wanted(
    study: optuna.Study, points: list[Settings], space: Space, clock: Clock, status: Status, running: int
) -> int:
    """How many candidates more may begin, as far as the budget and the space go; the default is never left out."""
    left = _open(study, points)
    if clock.spent(status.trials + running):
        return 1 if space.default.settings() in left else 0
    return min(len(left), clock.left(status.trials + running))


class _Running:
    """The candidates that have begun: one to be measured, and a few that are compiled meanwhile."""

    def __init__(self, study: optuna.Study, spec: Spec, session: Session, space: Space, heart: Heart) -> None:
        self._study, self._spec, self._session, self._space = study, spec, session, space
        self._heart = heart
        self._failures = KnownFailures(spec, session)
        self.trials: dict[Job, optuna.Trial] = {}

    def begin(self, most: int) -> None:
        """Ask for candidates until the workers have enough to do, `most` of them at most."""
        for _ in range(min(most, 1 + self._session.workers.ahead - len(self.trials))):
            trial = take(self._study, self._session.storage, self._space.distributions)
            self._heart.beat_for([*self.trials.values(), trial])
            if _is_duplicate(self._study, trial):
                release(self._study, trial)
                continue
            failed = self._failures.result(trial.params)
            if failed is not None:
                _tell(self._study, trial, failed)
                continue
            candidate = Candidate(
                self._spec, self._session.device, self._session.backend, trial.params, self._session.policy.name
            )
            self.trials[self._session.workers.submit(candidate)] = trial

    def drop_given_up(self) -> None:
        """Forget those that others have taken over."""
        lost = [job for job, trial in self.trials.items() if is_given_up(self._study, trial)]
        self._session.workers.withdraw(lost)
        for job in lost:
            del self.trials[job]

    def finish_one(self) -> None:
        """Measure the first that is compiled, and tell the study what came of it."""
        job = self._session.workers.first_compiled(list(self.trials))
        result = self._session.workers.evaluate(job)
        self._failures.note(job.candidate.settings, result)
        _tell(self._study, self.trials.pop(job), result)

    def release(self) -> None:
        """Give back the points of those that have not ended."""
        self._session.workers.withdraw(list(self.trials))
        for trial in self.trials.values():
            release(self._study, trial)
        self.trials.clear()


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


def _is_duplicate(study: optuna.Study, trial: optuna.Trial) -> bool:
    # Another process may have taken the same point since the sampler looked; of the two the older trial keeps it.
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
    others = study.get_trials(deepcopy=False, states=states)
    return any(other.number < trial.number and other.params == trial.params for other in others)


def _enqueue(study: optuna.Study, first: list[Schedule], points: list[Settings]) -> None:
    fresh = untried(study, points)
    for settings in dict.fromkeys(tuple(schedule.settings().items()) for schedule in first):
        if dict(settings) in fresh:
            study.enqueue_trial(dict(settings))


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


def _waiting(study: optuna.Study) -> list[Point]:
    return [held_point(trial) for trial in study.get_trials(deepcopy=False, states=(TrialState.WAITING,))]


def _status(study: optuna.Study, space: Space, clock: Clock) -> Status:
    trials = study.get_trials(deepcopy=False)
    fastest = measured(trials)
    ended = outcomes(trials)
    count = ended.total()
    default = [trial.value for trial in fastest if trial.params == space.default.settings()]
    return Status(
        trials=count,
        points=len(space.schedules),
        share=max(clock.share(count), count / len(space.schedules)),
        best=fastest[0].value if fastest else None,
        default=default[0] if default else None,
        failures=Counter({outcome: number for outcome, number in ended.items() if outcome is not Outcome.ok}),
    )
