"""One spec from search to committed winner."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from trellis_ops.specs.workload import NamedSpec
from tuner.search.finals import Verdict, hold_finals
from tuner.search.progress import SearchProgress
from tuner.search.study import StudySession, search_study
from tuner.search.winner import commit_winner
from tuning_db import Outcome, Record


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


def tune(named: NamedSpec, session: StudySession, progress: SearchProgress) -> Tuned:
    """Search, hold the finals, measure what to compare with, and commit the winner.

    Raises:
        NothingMeasuredError: no candidate was right.
        StudyError: the study storage failed.
        tuning_db.TuningDatabaseError: the winner could not be stored.
    """
    spec = named.spec
    progress.begin(named.name)
    searched = search_study(spec, session, progress.show)
    progress.phase("finals: the best few and the default side by side")
    timings, verdict = hold_finals(spec, session, searched, though_none_was_right=True)
    progress.phase("measuring eager PyTorch and the ceiling")
    record = commit_winner(spec, session, searched, timings, verdict)
    progress.end(verdict.reason)
    return Tuned(
        name=named.name,
        record=record,
        verdict=verdict,
        default=searched.space.default.key(),
        winner=verdict.winner,
        failures=searched.failures(),
        points=len(searched.space.schedules),
        exhausted=searched.exhausted,
    )
