"""The search in the order of a list, on workers that compile when the test says so and take times from a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from codegen.device import NAMED
from codegen.schedules.schedule import Schedule
from tests.tuner.conftest import UPDATE
from tuner.budget import Budget, Clock
from tuner.search.list_order import ListOrder
from tuner.search.search import Searched, search
from tuner.search.strategy import Tried
from tuner.session import Session
from tuner.space.legal import changes
from tuner.space.space import space_of
from tuner.workers.compile_queue import CompileQueue, Job
from tuner.workers.worker import Candidate, Result
from tuning_db import Outcome

DEVICE = NAMED["x86-64-v4"]
"""How many candidates lie how near to each other differs from machine to machine."""

SPACE = space_of(UPDATE, "tvm", DEVICE)
DEFAULT, *OTHERS = SPACE.schedules.values()
FAR_FIRST = sorted(OTHERS, key=lambda each: -changes(each, DEFAULT))


@dataclass
class Workers:
    """In place of `tuner.workers.pool.Workers`: those in `slow` are compiled when nothing else is left to wait for.

    `now` is the time of its clock in seconds, `takes` what each measurement adds to it. The queue is the real one.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    slow: tuple[Schedule, ...] = ()
    takes: float = 0.0
    ahead: int = 3
    now: float = 0.0
    evaluated: list[Schedule] = field(default_factory=list)
    withdrawn: list[Schedule] = field(default_factory=list)
    put_aside: list[Job] = field(default_factory=list)
    submitted: list[Job] = field(default_factory=list)
    queue: CompileQueue = field(default_factory=CompileQueue)

    def submit(self, candidate: Candidate) -> Job:
        self.submitted.append(self.queue.submit(candidate))
        return self.submitted[-1]

    def put_back(self, jobs: Sequence[Job]) -> None:
        assert len(self.put_aside) < 1000, "the search goes round in circles"
        self.put_aside += jobs
        self.queue.put_back(jobs)

    def withdraw(self, jobs: Sequence[Job]) -> None:
        self.queue.withdraw(jobs)
        self.withdrawn += [SPACE.at(job.candidate.settings) for job in jobs]

    def compiled_within(self, jobs: Sequence[Job], seconds: float = float("inf")) -> Job | None:
        fast = [job for job in jobs if SPACE.at(job.candidate.settings) not in self.slow]
        if not fast and seconds < float("inf"):
            self.now += seconds
            return None
        return next(iter(fast or jobs), None)

    def evaluate(self, job: Job) -> Result:
        schedule = SPACE.at(job.candidate.settings)
        self.evaluated.append(schedule)
        self.now += self.takes
        return Result(Outcome.ok, seconds=self.seconds.get(schedule.key(), 1.0))


def strategy(guessed: Sequence[Schedule] = (), known: Sequence[Tried] = (), keep=lambda settings, result: None):
    return ListOrder(SPACE, {each: float(place + 1) for place, each in enumerate(guessed)}, known, keep)


def run(workers: Workers, order: ListOrder, budget: Budget) -> Searched:
    """Search on the clock of `workers`."""

    class WorkersClock(Clock):
        def elapsed(self) -> float:
            return workers.now

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tuner.search.search.Clock", WorkersClock)
        return search(UPDATE, Session(DEVICE, "tvm", None, budget, workers), order)


def test_the_default_comes_first_then_the_prepared_then_the_nearest_to_the_best():
    workers, prepared = Workers(), FAR_FIRST[:3]
    best = FAR_FIRST[1]
    workers.seconds = {best.key(): 0.5}
    searched = run(workers, strategy(prepared), Budget(trials=10_000))
    assert workers.evaluated[:4] == [DEFAULT, *prepared]
    rest = [changes(each, best) for each in workers.evaluated[4:]]
    assert rest == sorted(rest)
    assert rest != sorted(rest, reverse=True)
    assert searched.exhausted
    assert len(workers.evaluated) == len(set(workers.evaluated)) == len(SPACE.schedules)


def test_candidates_that_are_overtaken_while_they_compile_come_later_and_are_compiled_once():
    near = sorted(OTHERS, key=lambda each: changes(each, DEFAULT))
    best = near[1]
    workers = Workers({best.key(): 0.5}, ahead=20)
    run(workers, strategy(), Budget(trials=10_000))
    assert len(workers.evaluated) == len(set(workers.evaluated)) == len(SPACE.schedules)
    after = [changes(each, best) for each in workers.evaluated[workers.evaluated.index(best) + 2 :]]
    assert after == sorted(after), "all but one that was compiled when the best was found"
    overtaken = {SPACE.at(job.candidate.settings) for job in workers.put_aside}
    assert overtaken
    again = [job for job in workers.submitted if SPACE.at(job.candidate.settings) in overtaken]
    assert len(again) > len(set(again)) == len(overtaken), "each has one job, however often it is submitted"


def test_what_was_overtaken_is_withdrawn_when_the_search_ends():
    near = sorted(OTHERS, key=lambda each: changes(each, DEFAULT))
    workers = Workers({near[1].key(): 0.5}, ahead=20)
    run(workers, strategy(), Budget(trials=10))
    assert workers.put_aside
    assert {SPACE.at(job.candidate.settings) for job in workers.put_aside} <= set(workers.withdrawn)
    assert all(workers.queue.submit(job.candidate) is not job for job in workers.put_aside)


def test_the_prepared_come_in_another_order_once_their_guesses_are_worth_nothing():
    prepared = FAR_FIRST[:12]
    wrong = Workers({each.key(): 1.0 / (place + 1) for place, each in enumerate(prepared)})
    run(wrong, strategy(prepared), Budget(trials=13))
    assert set(wrong.evaluated) == {DEFAULT, *prepared}
    assert wrong.evaluated[:6] == [DEFAULT, *prepared[:5]]
    assert wrong.evaluated[6:] != prepared[5:]
    rightly = Workers({each.key(): float(place + 1) for place, each in enumerate(prepared)})
    order = strategy(prepared)
    run(rightly, order, Budget(trials=13))
    assert rightly.evaluated == [DEFAULT, *prepared]
    assert order.quality() == pytest.approx(1.0)


def test_what_is_known_is_not_tried_again_and_counts():
    kept = []
    first = Workers({FAR_FIRST[0].key(): 0.5})
    run(first, strategy(FAR_FIRST[:4], keep=lambda *given: kept.append(given)), Budget(trials=3))
    assert [SPACE.at(settings) for settings, _ in kept] == first.evaluated
    known = [Tried(settings, result.outcome, result.reason, result.seconds) for settings, result in kept]
    second, order = Workers(), strategy(FAR_FIRST[:4], known)
    searched = run(second, order, Budget(trials=5))
    assert second.evaluated == FAR_FIRST[2:4]
    assert [SPACE.at(each.settings) for each in searched.tried] == [*first.evaluated, *second.evaluated]
    assert not run(Workers(), strategy(known=known), Budget(trials=3)).exhausted


class ToldAndInterrupted(ListOrder):
    def tell(self, proposal, result):
        super().tell(proposal, result)
        raise KeyboardInterrupt


def test_an_interruption_before_a_candidate_is_kept_lets_it_come_again_and_one_after_that_does_not():
    def interrupted(settings, result):
        raise KeyboardInterrupt

    unkept, kept = strategy(keep=interrupted), ToldAndInterrupted(SPACE, {}, (), lambda settings, result: None)
    for order, ended in ((unkept, 0), (kept, 1)):
        with pytest.raises(KeyboardInterrupt):
            run(Workers(), order, Budget(trials=3))
        assert len(order.tried()) == ended
        assert len(order.untried()) == len(SPACE.schedules) - ended


def test_a_strict_budget_gives_back_what_is_not_compiled_when_the_time_is_up():
    slow, order = Workers(slow=tuple(OTHERS)), strategy()
    searched = run(slow, order, Budget(seconds=10.0, strict=True))
    assert slow.evaluated == [DEFAULT]
    assert len(slow.withdrawn) == 1 + slow.ahead
    assert len(order.untried()) == len(OTHERS)
    assert not searched.exhausted


def test_the_default_is_waited_for_when_the_time_is_up():
    for strict in (True, False):
        late = Workers(slow=(DEFAULT,), takes=20.0)
        run(late, strategy(), Budget(seconds=10.0, strict=strict))
        assert DEFAULT in late.evaluated
        assert len(late.evaluated) == (2 if strict else 1 + late.ahead)


def test_what_has_begun_is_finished_unless_the_budget_is_strict():
    patient, strict = Workers(takes=20.0), Workers(takes=20.0)
    run(patient, strategy(), Budget(seconds=10.0))
    run(strict, strategy(), Budget(seconds=10.0, strict=True))
    assert len(patient.evaluated) == 1 + patient.ahead
    assert strict.evaluated == [DEFAULT]
