"""One of several processes that search one space: `python -m tests.tuner.studies.fleet.member URL FOLDER SECONDS`.

The study, the sampler and the storage are real. What a candidate takes is made of its settings, instead of measured, so
that any number of searches must find the same winner; SECONDS is how long each pretends to work.
"""

from __future__ import annotations

import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from codegen.device import cpu
from codegen.rule import Rule
from codegen.schedules.tvm import TvmSchedule
from codegen.spec import Problem, Spec
from tuner.budget import Budget
from tuner.search.search import Searched
from tuner.search.strategy import right
from tuner.search.study import StudySession, search_study
from tuner.studies.studies import open_storage
from tuner.workers.compile_queue import Job
from tuner.workers.worker import Candidate, Result
from tuning_db import Outcome, Store

SPEC = Spec(Rule(), Problem("memory_update", tokens=32, heads=1, dim_k=8, dim_v=8, slots=8, chunk=8))
HEARTBEAT_SECONDS = 1


def pretended_seconds(settings: dict[str, object]) -> float:
    """A number that the settings decide, no two alike."""
    key = ",".join(f"{name}={settings[name]}" for name in sorted(settings))
    return 1e-3 + zlib.crc32(key.encode()) * 1e-12


@dataclass(frozen=True)
class PretendingWorkers:
    """In place of `tuner.workers.pool.Workers`."""

    seconds: float
    ahead: int = 1

    def submit(self, candidate: Candidate) -> Job:
        return Job(candidate, Result(Outcome.ok))

    def compiled_within(self, jobs: Sequence[Job], seconds: float) -> Job:
        return jobs[0]

    def evaluate(self, job: Job) -> Result:
        time.sleep(self.seconds)
        return Result(Outcome.ok, seconds=pretended_seconds(job.candidate.settings))

    def put_back(self, jobs: Sequence[Job]) -> None:
        pass

    def withdraw(self, jobs: Sequence[Job]) -> None:
        pass


def run(url: str, folder: Path, seconds: float) -> Searched:
    """Search until every point was tried."""
    session = StudySession(
        cpu(),
        "tvm",
        Store(folder / "tuning_db", folder / "shipped"),
        Budget(trials=10_000),
        PretendingWorkers(seconds),
        storage=open_storage(url, heartbeat_seconds=HEARTBEAT_SECONDS),
    )
    return search_study(SPEC, session)


def winner(searched: Searched) -> TvmSchedule:
    """The schedule of the best trial."""
    return searched.space.at(right(searched.tried)[0][1])


if __name__ == "__main__":
    found = run(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))
    print(winner(found).key())
