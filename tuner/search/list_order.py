"""A search in the order of a list, without Optuna: prepared candidates first, then the nearest to the best so far."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence

from codegen.schedules.schedule import Schedule
from tuner.search.guesses import is_worth_nothing, order_quality
from tuner.search.strategy import Proposal, Tried
from tuner.space.legal import Settings, changes
from tuner.space.space import Space
from tuner.workers.worker import Result
from tuning_db import Outcome


class ListOrder:
    """The default, the prepared candidates by their guesses, then the others, nearest to the best so far first.

    As soon as times show that the guesses are worth nothing, the rest of the prepared comes in a random order.

    Args:
        space: the candidates.
        guesses: the prepared candidates in the order of their guesses, each with the seconds that were guessed; None
            where no guess could be made.
        known: what became of candidates in earlier runs.
        keep: remembers what became of one for later runs.
    """

    def __init__(
        self,
        space: Space,
        guesses: Mapping[Schedule, float | None],
        known: Iterable[Tried],
        keep: Callable[[Settings, Result], None],
    ) -> None:
        self.space = space
        self._keep = keep
        self._guesses = guesses
        self._schedules = [*space.schedules.values()]
        self._numbers = {schedule: number for number, schedule in enumerate(self._schedules)}
        self._first = [schedule for schedule in guesses if schedule in self._numbers and schedule != space.default]
        self._rest = [schedule for schedule in self._schedules[1:] if schedule not in guesses]
        self._rest.sort(key=lambda each: changes(each, space.default))
        self._running: set[int] = set()
        self._ended: dict[int, Tried] = {}
        self._best: tuple[float, Schedule] | None = None
        self._shuffled = False
        for tried in known:
            self._end(tried)

    def tried(self) -> list[Tried]:
        """What came to its end, in order."""
        return [*self._ended.values()]

    def untried(self) -> list[Settings]:
        """What is neither tried nor running, next first."""
        return [each.settings() for each in self._order() if self._numbers[each] not in self._running]

    def ask(self) -> Proposal | None:
        """The first in the order that is not running."""
        schedule = next(each for each in self._order() if self._numbers[each] not in self._running)
        self._running.add(self._numbers[schedule])
        return Proposal(self._numbers[schedule], schedule.settings())

    def tell(self, proposal: Proposal, result: Result) -> None:
        """Keep what became of a candidate, and put the others in order."""
        self._keep(proposal.settings, result)
        self._end(Tried(proposal.settings, result.outcome, result.reason, result.seconds))
        self._running.remove(proposal.number)

    def release(self, proposal: Proposal) -> None:
        """Put a candidate back into its place."""
        self._running.discard(proposal.number)

    def still_wanted(self, running: Sequence[Proposal]) -> list[Proposal]:
        """Those that no other has overtaken in the order."""
        places = {self._numbers[schedule]: place for place, schedule in enumerate(self._order()[: len(running)])}
        wanted = [each for each in running if each.number in places]
        self._running = {each.number for each in wanted}
        return sorted(wanted, key=lambda each: places[each.number])

    def wait_for_others(self) -> bool:
        """Never: nobody else works on this list."""
        return False

    def quality(self) -> float | None:
        """The rank correlation of guesses with times: what the order in which candidates came was worth."""
        pairs = self._pairs()
        return order_quality([guess for guess, _ in pairs], [seconds for _, seconds in pairs])

    def _order(self) -> list[Schedule]:
        every = (self.space.default, *self._first, *self._rest)
        return [schedule for schedule in every if self._numbers[schedule] not in self._ended]

    def _end(self, tried: Tried) -> None:
        schedule = self.space.at(tried.settings)
        self._ended[self._numbers[schedule]] = tried
        if tried.outcome is not Outcome.ok or tried.seconds is None:
            return
        if self._best is None or tried.seconds < self._best[0]:
            self._best = tried.seconds, schedule
            self._rest.sort(key=lambda each: changes(each, schedule))
        if not self._shuffled and is_worth_nothing(self._pairs()):
            random.Random(0).shuffle(self._first)
            self._shuffled = True

    def _pairs(self) -> list[tuple[float, float]]:
        """Guess and time of each that has both."""
        return [
            (guess, tried.seconds)
            for number, tried in self._ended.items()
            if tried.seconds is not None and (guess := self._guesses.get(self._schedules[number])) is not None
        ]
