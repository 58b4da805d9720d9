"""The search: ask, compile ahead, evaluate, tell, until the budget or the space is used up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from codegen.spec import Spec
from tuner.budget import Budget, Clock
from tuner.processes.interruption import stop_if_interrupted
from tuner.search.strategy import Proposal, Strategy, Tried, right
from tuner.session import Session
from tuner.space.legal import Settings
from tuner.space.space import Space
from tuner.workers.compile_queue import Job
from tuning_db import Outcome


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
        tried: every candidate that came to an end, in this run or an earlier one.
        exhausted: whether that is all of the space.
    """

    space: Space
    tried: tuple[Tried, ...]
    exhausted: bool

    def failures(self) -> Counter[Outcome]:
        """How many candidates ended how, `ok` left out."""
        return _failures(self.tried)


def search(
    spec: Spec,
    session: Session,
    strategy: Strategy,
    show: Callable[[Status], None] = lambda status: None,
    *,
    budget: Budget | None = None,
) -> Searched:
    """Try candidates for `spec` in the order of `strategy`.

    While one candidate is measured, the next few are compiled. Each is told to the strategy as soon as it ends, so that
    an interruption loses at most those that have begun; they come again at the next run.

    Args:
        spec: what to search for.
        session: where, by whom, and how long unless `budget` says so.
        strategy: what proposes the candidates, and remembers them.
        show: told how far it is, before each candidate.
        budget: instead of the session's.

    Raises:
        WorkerError: workers cannot be started.
        KeyboardInterrupt: passed on after the running candidates were released.
    """
    clock = Clock(budget or session.budget)
    running = _Running(spec, session, strategy)
    try:
        while True:
            stop_if_interrupted()
            running.keep_wanted()
            status = _status(strategy, clock)
            show(status)
            wanted = _wanted(strategy, clock, status.trials + len(running.proposals))
            running.begin(wanted)
            if running.proposals:
                running.finish_one(clock.patience())
            elif not wanted and not strategy.wait_for_others():
                return Searched(strategy.space, tuple(strategy.tried()), exhausted=not strategy.untried())
    finally:
        running.release()


def _wanted(strategy: Strategy, clock: Clock, begun: int) -> int:
    """How many candidates more may begin, as far as the budget and the space go; the default is never left out."""
    untried = strategy.untried()
    if clock.spent(begun):
        return 1 if strategy.space.default.settings() in untried else 0
    return min(len(untried), clock.left(begun))


class _Running:
    """The candidates that have begun: one to be measured, and a few that are compiled meanwhile."""

    def __init__(self, spec: Spec, session: Session, strategy: Strategy) -> None:
        self._spec, self._session, self._strategy = spec, session, strategy
        self._workers = session.workers
        self._put_back: list[Job] = []
        self.proposals: dict[Job, Proposal] = {}

    def begin(self, most: int) -> None:
        """Ask for candidates until the workers have enough to do, `most` of them at most."""
        for _ in range(min(most, 1 + self._workers.ahead - len(self.proposals))):
            proposal = self._strategy.ask()
            if proposal is not None:
                candidate = self._session.candidate(self._spec, proposal.settings)
                self.proposals[self._workers.submit(candidate)] = proposal

    def keep_wanted(self) -> None:
        """Put those that the strategy does not want now behind all others, and the others in its order."""
        wanted = self._strategy.still_wanted([*self.proposals.values()])
        jobs = {proposal.number: job for job, proposal in self.proposals.items()}
        kept = {jobs[proposal.number]: proposal for proposal in wanted}
        unwanted = [job for job in self.proposals if job not in kept]
        self._put_back += unwanted
        self._workers.put_back(unwanted)
        self.proposals = kept

    def finish_one(self, patience: float) -> None:
        """Measure the first that is compiled, and tell what came of it.

        After `patience` seconds without one all are released but the default, which is waited for.
        """
        job = self._workers.compiled_within([*self.proposals], patience) if patience > 0 else None
        if job is None:
            self.release(besides=self._strategy.space.default.settings())
            job = self._workers.compiled_within([*self.proposals])
        if job is not None:
            result = self._workers.evaluate(job)
            # One whose telling is interrupted is still to be released.
            self._strategy.tell(self.proposals[job], result)
            del self.proposals[job]

    def release(self, besides: Settings | None = None) -> None:
        """Give back those that have not ended, `besides` the one with these settings.

        If that fails for one, the others are given back all the same.
        """
        released = [job for job, proposal in self.proposals.items() if proposal.settings != besides]
        self._workers.withdraw([*released, *(job for job in self._put_back if job not in self.proposals)])
        with ExitStack() as stack:
            for job in reversed(released):
                stack.callback(self._strategy.release, self.proposals.pop(job))


def _status(strategy: Strategy, clock: Clock) -> Status:
    tried, points = strategy.tried(), len(strategy.space.schedules)
    fastest, default = right(tried), strategy.space.default.settings()
    return Status(
        trials=len(tried),
        points=points,
        share=max(clock.share(len(tried)), len(tried) / points),
        best=fastest[0][0] if fastest else None,
        default=next((seconds for seconds, settings in fastest if settings == default), None),
        failures=_failures(tried),
    )


def _failures(tried: Sequence[Tried]) -> Counter[Outcome]:
    return Counter(each.outcome for each in tried if each.outcome is not Outcome.ok)
