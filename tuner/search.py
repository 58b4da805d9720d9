"""Ask, evaluate, tell: one Optuna study per spec, until its budget or its space is used up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from codegen.device import Device
from codegen.errors import TrellisError
from codegen.schedule import Schedule, from_settings
from codegen.spec import Spec, bucket
from tuner.budget import Budget, Clock
from tuner.interruption import stop_if_interrupted
from tuner.sampler import FreshSampler, Point, held_point, release, untried
from tuner.space import Space, space_of
from tuner.studies import claim, measured, open_study, outcomes, study_key
from tuner.worker import Candidate, Result, evaluate
from tuning_db import Outcome, Store

_WINNERS_FIRST = 4


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
        return [trial for trial in self.study.get_trials(deepcopy=False) if "outcome" in trial.user_attrs]


def search(
    spec: Spec,
    backend: str,
    device: Device,
    storage: RDBStorage,
    store: Store,
    budget: Budget,
    show: Callable[[Status], None],
) -> Searched:
    """Try candidates for `spec`: the default, winners of earlier times and neighbours, then what TPE proposes.

    A study that exists is continued. Each candidate is told to the study as soon as it ends, so that an interruption
    loses at most the running one; it comes again at the next run.

    Raises:
        StudyError: the storage failed.
        KeyboardInterrupt: passed on after the running trial was released.
    """
    space = space_of(spec, backend, device)
    points = [schedule.settings() for schedule in space.schedules.values()]
    key = study_key(spec, backend, device, space)
    study = open_study(storage, key, FreshSampler(points, space.distributions, seed=int(key.space_digest[:8], 16)))
    _enqueue(study, [space.default, *_earlier_winners(spec, backend, device, store, space)], points)
    clock = Clock(budget)
    while True:
        stop_if_interrupted()
        status = _status(study, space, clock)
        show(status)
        open_points = [*untried(study, points), *_waiting(study)]
        if not open_points or (clock.spent(status.trials) and space.default.settings() not in open_points):
            return Searched(space, study, exhausted=not open_points)
        _one_trial(study, spec, backend, device, space)


def _one_trial(study: optuna.Study, spec: Spec, backend: str, device: Device, space: Space) -> None:
    trial = study.ask(dict(space.distributions))
    claim(trial)
    if _is_duplicate(study, trial):
        release(study, trial)
        return
    try:
        result = evaluate(Candidate(spec, device, backend, trial.params))
    except BaseException:
        release(study, trial)
        raise
    _tell(study, trial, result)


def _tell(study: optuna.Study, trial: optuna.Trial, result: Result) -> None:
    trial.set_user_attr("outcome", result.outcome.value)
    trial.set_user_attr("reason", result.reason)
    trial.set_user_attr("errors", {name: f"{error:.3e}" for name, error in result.errors.items()})
    trial.set_user_attr("compile_seconds", round(result.compile_seconds, 3))
    if result.outcome is Outcome.ok:
        trial.set_user_attr("spread", result.spread)
        study.tell(trial, result.seconds)
    else:
        # TPE ranks pruned trials behind all others, and so learns to stay away.
        study.tell(trial, state=TrialState.PRUNED)


def _is_duplicate(study: optuna.Study, trial: optuna.Trial) -> bool:
    # Another process may have taken the same point since the sampler looked; of the two the older trial keeps it.
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
    others = study.get_trials(deepcopy=False, states=states)
    return any(other.number < trial.number and other.params == trial.params for other in others)


def _enqueue(study: optuna.Study, first: list[Schedule], points: list[dict[str, int | str]]) -> None:
    fresh = untried(study, points)
    for settings in dict.fromkeys(tuple(schedule.settings().items()) for schedule in first):
        if dict(settings) in fresh:
            study.enqueue_trial(dict(settings))


def _earlier_winners(spec: Spec, backend: str, device: Device, store: Store, space: Space) -> list[Schedule]:
    """What won for this spec or its bucket, here or elsewhere, with these templates or older ones; nearest first."""
    related = [
        record
        for record in store.records()
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
