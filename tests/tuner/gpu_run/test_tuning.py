"""The tuning of a GPU run: what is prefetched, what is known from its ledger, and the order of its candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from codegen.device import cpu
from codegen.kernels.build import operator_digest
from codegen.schedules.schedule import Schedule
from tests.tuner.conftest import STEP, UPDATE
from trellis_ops.specs.workload import NamedSpec
from tuner.gpu_run import tuning
from tuner.gpu_run.ledger import Entry, Ledger
from tuner.gpu_run.plan import GpuRun
from tuner.gpu_run.tuning import LEAST_SECONDS, strategy_of, tune_all
from tuner.offline import candidates
from tuner.space.legal import legal_schedules
from tuner.workers.compile_queue import CompileQueue, Job
from tuner.workers.worker import Result
from tuning_db import Outcome, Store

NAMED = NamedSpec("update", UPDATE)
SPECS = (NAMED, NamedSpec("step", STEP))


@dataclass
class Workers:
    """In place of `tuner.workers.pool.Workers`: the queue alone, of which nothing is taken."""

    queue: CompileQueue = field(default_factory=CompileQueue)

    def prefetch(self, wanted) -> list[Job]:
        return self.queue.prefetch(wanted)

    def withdraw(self, jobs: Sequence[Job]) -> None:
        self.queue.withdraw(jobs)


def gpu_run(tmp_path: Path, workload: tuple[NamedSpec, ...] = SPECS, seconds: float = 6000.0) -> GpuRun:
    ledger, store = Ledger(tmp_path / "findings.jsonl"), Store(tmp_path / "winners")
    return GpuRun(cpu(), "tvm", workload, Workers(), ledger, store, tmp_path / "lists", seconds)


def tuned(run: GpuRun, named: NamedSpec, session, strategy) -> Entry:
    return Entry(stage="tuned", name=named.name, state="", ok=False)


def test_what_was_prefetched_for_a_spec_is_withdrawn_when_that_is_tuned(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "tune", tuned)
    run = gpu_run(tmp_path)
    waiting = [run.workers.queue.waiting() for _ in tune_all(run)]
    left = len(strategy_of(run, SPECS[1]).untried()[: tuning._AT_ONCE])
    assert waiting == [left, 0]
    assert left > 0


@pytest.mark.parametrize(("first", "share"), [(4.0, 2.0), (1.2, 1.0)])
def test_a_spec_has_the_time_of_a_search_or_is_left_with_what_was_prefetched_for_it(
    first, share, tmp_path, monkeypatch
):
    budgets = []

    def tune(run: GpuRun, named: NamedSpec, session, strategy) -> Entry:
        budgets.append(session.budget.seconds)
        return tuned(run, named, session, strategy)

    left = iter([first, first, 0.9])
    monkeypatch.setattr(GpuRun, "left_for", lambda run, stage: LEAST_SECONDS * next(left, 0.0))
    monkeypatch.setattr(tuning, "tune", tune)
    run = gpu_run(tmp_path)
    assert [each.name for each in tune_all(run)] == ["update"]
    assert budgets == [LEAST_SECONDS * share]
    assert run.workers.queue.waiting() == 0


def test_a_failed_candidate_is_known_by_its_outcome_whatever_its_text_says(tmp_path):
    run = gpu_run(tmp_path)
    strategy = strategy_of(run, NAMED)
    first = strategy.ask()
    strategy.tell(first, Result(Outcome.wrong_answer, "y: relative error 1"))
    second = strategy.ask()
    strategy.tell(second, Result(Outcome.timeout, "it took 60 s"))
    one, other = run.ledger.of("measured")
    run.ledger.add(Entry(stage=one.stage, name=one.name, state=one.state, ok=False, text="y!", values=one.values))
    run.ledger.add(Entry(stage=other.stage, name=other.name, state=other.state, ok=False, text=other.text))
    known = {str(each.settings): (each.outcome, each.reason) for each in strategy_of(gpu_run(tmp_path), NAMED).tried()}
    assert known == {
        str(first.settings): (Outcome.wrong_answer, "y!"),
        str(second.settings): (Outcome.timeout, "it took 60 s"),
    }


def prepare(tmp_path: Path, chosen: Sequence[tuple[Schedule, float | None]]) -> None:
    ranked = candidates.Ranked(
        name=NAMED.name,
        spec=UPDATE.key(),
        device=cpu().key(),
        template_digest=operator_digest(UPDATE.problem, "tvm"),
        tried=len(chosen),
        pruned=0,
        guesses=tuple(candidates.Guess(schedule.settings(), seconds) for schedule, seconds in chosen),
    )
    candidates.write([ranked], candidates.path_for(cpu(), tmp_path / "lists"))


def test_prepared_candidates_without_a_guess_follow_those_with_one(tmp_path):
    default, *others = legal_schedules(UPDATE, "tvm", cpu())
    prepared = others[::-1][:4]
    prepare(tmp_path, [*zip(prepared, (1e-6, 2e-6, None, None), strict=True)])
    order = strategy_of(gpu_run(tmp_path), NAMED).untried()
    assert order[:5] == [each.settings() for each in (default, *prepared)]
