"""How much a winner depends on chance: full tunings of one spec that differ in the sampler's seed alone.

Each begins with nothing: a study of its own, no earlier winner, no record. Then the finalists of all are measured in
turn, and the regret of each tuning is how much slower its winner is than the fastest of them.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from codegen.schedules.schedule import Schedule
from codegen.spec import Spec
from tuner.errors import NothingMeasuredError
from tuner.search.finals import finalists_of, hold_finals
from tuner.search.study import StudySession, search_study
from tuner.studies.studies import open_storage
from tuner.workers.worker import Finals
from tuning_db import Store

_SECONDS_EACH = 1.5
_ROUNDS = 200


@dataclass(frozen=True)
class Tuning:
    """One tuning among several.

    Attributes:
        seed: of its sampler.
        trials: candidates that it tried.
        winner: what it would have committed.
        finalists: that and the others of its finals.
    """

    seed: int
    trials: int
    winner: Schedule
    finalists: tuple[Schedule, ...]


@dataclass(frozen=True)
class Regret:
    """What several tunings of one spec came to.

    Attributes:
        tunings: one for each seed.
        seconds: median time of every finalist, measured in turn with the others; by key.
        best: key of the fastest.
    """

    tunings: tuple[Tuning, ...]
    seconds: dict[str, float]
    best: str

    def of(self, tuning: Tuning) -> float:
        """How much slower the winner of `tuning` is than the fastest finalist of all, as a share."""
        return self.seconds[tuning.winner.key()] / self.seconds[self.best] - 1.0

    @property
    def mean(self) -> float:
        """The mean over the tunings."""
        return statistics.mean(self.of(tuning) for tuning in self.tunings)


def regret(spec: Spec, session: StudySession, runs: int, show: Callable[[Tuning], None]) -> Regret:
    """Tune `spec` `runs` times within the session's budget each, and measure all finalists together.

    Args:
        spec: what to tune.
        session: its device, backend, workers and budget; its storage and its database are left alone.
        runs: how many tunings.
        show: told each as it ends.

    Raises:
        NothingMeasuredError: no candidate was right, or a winner was not right again.
    """
    tunings = []
    for seed in range(runs):
        tunings.append(_tuned(spec, session, seed))
        show(tunings[-1])
    every = {schedule.key(): schedule for tuning in tunings for schedule in tuning.finalists}
    candidates = [session.candidate(spec, each.settings()) for each in every.values()]
    timings = session.workers.finals(Finals(tuple(candidates), _SECONDS_EACH * len(candidates), _ROUNDS))
    seconds = {list(every)[place]: timing.seconds for place, timing in timings.items()}
    for tuning in tunings:
        if tuning.winner.key() not in seconds:
            reason = f"{tuning.winner.key()}, a winner, was not right when it was measured again"
            raise NothingMeasuredError(spec=spec.key(), reasons=reason)
    return Regret(tuple(tunings), seconds, min(seconds, key=lambda key: seconds[key]))


def _tuned(spec: Spec, session: StudySession, seed: int) -> Tuning:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        storage = open_storage(f"sqlite:///{folder / 'studies.db'}")
        alone = replace(session, storage=storage, store=Store(None, folder / "nothing"))
        searched = search_study(spec, alone, seed=seed)
        _, verdict = hold_finals(spec, alone, searched)
        finalists, trials = tuple(finalists_of(searched)), len(searched.tried)
        storage.engine.dispose()
    winner = searched.space.schedules[verdict.winner]
    return Tuning(seed, trials, winner, tuple(dict.fromkeys((*finalists, winner))))
