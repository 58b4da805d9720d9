"""One spec from search to committed winner."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import sqlalchemy.exc
from msgspec.structs import replace
from optuna.exceptions import OptunaError

from codegen.schedules.schedule import Schedule
from codegen.spec import Spec
from tuner.errors import NothingMeasuredError
from tuner.measure.cost import cost_of
from tuner.measure.timed import Timing
from tuner.policy import stated
from tuner.search.finals import Verdict, judge
from tuner.search.progress import SearchProgress
from tuner.search.search import Searched, search
from tuner.search.winner import Beside, winner_record
from tuner.session import Session
from tuner.space.legal import changes
from tuner.studies.studies import measured, outcomes, unusable
from tuner.workers.worker import Candidate, Finals
from tuner.workload import NamedSpec
from tuning_db import Outcome, Record

FINALISTS = 3
"""How many candidates meet the default once more."""

FINAL_ROUNDS = 60
"""Most rounds of the finals."""


@dataclass(frozen=True)
class Tuned:
    """What came of one spec.

    Attributes:
        name: of the spec.
        record: as committed.
        verdict: who won against the default, and by how much.
        default: key of the default schedule.
        winner: key of the winner.
        failures: how many trials ended how, `ok` left out.
        points, exhausted: size of the space, and whether all of it was tried.
    """

    name: str
    record: Record
    verdict: Verdict
    default: str
    winner: str
    failures: Counter[Outcome]
    points: int
    exhausted: bool


def tune(named: NamedSpec, session: Session, progress: SearchProgress) -> Tuned:
    """Search, hold the finals, measure what to compare with, and commit the winner.

    Raises:
        NothingMeasuredError: no candidate was right.
        StudyError: the study storage failed.
        tuning_db.TuningDatabaseError: the winner could not be stored.
    """
    spec = named.spec
    progress.begin(named.name)
    try:
        searched = search(spec, session, progress.show)
    except (sqlalchemy.exc.SQLAlchemyError, OptunaError) as error:
        raise unusable(session.storage.url, error) from error
    progress.phase("finals: the best few and the default side by side")
    timings, verdict = hold_finals(spec, session, searched)
    progress.phase("measuring eager PyTorch and the ceiling")
    compile_seconds = session.workers.compiled(spec, session.device).seconds if session.with_compile else None
    record = replace(_record(named, session, searched, timings, verdict), compile_seconds=compile_seconds)
    session.store.commit(record)
    progress.end(verdict.reason)
    failures = outcomes(searched.trials())
    del failures[Outcome.ok]
    return Tuned(
        name=named.name,
        record=record,
        verdict=verdict,
        default=searched.space.default.key(),
        winner=verdict.winner,
        failures=failures,
        points=len(searched.space.schedules),
        exhausted=searched.exhausted,
    )


def hold_finals(spec: Spec, session: Session, searched: Searched) -> tuple[dict[str, Timing], Verdict]:
    """Time the default and the best of a search in turn, and judge; times by key of the schedule.

    Raises:
        NothingMeasuredError: no candidate was right.
    """
    finalists = finalists_of(searched)
    candidates = [
        Candidate(spec, session.device, session.backend, schedule.settings(), session.policy.name)
        for schedule in finalists
    ]
    timings = session.workers.finals(Finals(tuple(candidates), session.final_seconds, FINAL_ROUNDS))
    if not timings:
        reasons = Counter(str(trial.user_attrs.get("reason")) for trial in searched.trials())
        most = "; ".join(f"{reason} ({count} times)" for reason, count in reasons.most_common(2))
        raise NothingMeasuredError(spec=spec.key(), reasons=most)
    by_key = {finalists[place].key(): timing for place, timing in timings.items()}
    default = searched.space.default
    apart = {schedule.key(): changes(schedule, default) for schedule in finalists}
    return by_key, judge(by_key, default.key(), apart)


def finalists_of(searched: Searched) -> list[Schedule]:
    """The default, and the best `FINALISTS` of the others."""
    best = [searched.space.at(trial.params) for trial in measured(searched.trials())]
    others = [schedule for schedule in best if schedule != searched.space.default]
    return [searched.space.default, *others[:FINALISTS]]


def _record(
    named: NamedSpec, session: Session, searched: Searched, timings: dict[str, Timing], verdict: Verdict
) -> Record:
    spec, device = named.spec, session.device
    timing, cost = timings[verdict.winner], cost_of(spec)
    ceiling = session.workers.ceiling(device, spec.problem.dtype, cost.bytes)
    beside = Beside(
        default=timings.get(searched.space.default.key()),
        eager_seconds=session.workers.eager(spec, device).seconds,
        ceiling_share=ceiling.share(cost, timing.seconds),
        trials=len(searched.trials()),
    )
    return winner_record(
        spec,
        searched.space.schedules[verdict.winner],
        device,
        timing,
        beside,
        reason=verdict.reason,
        policy=stated(session.policy, device, FINAL_ROUNDS),
        source=session.source,
    )
