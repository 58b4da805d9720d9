from __future__ import annotations

import math
import time

import pytest

from tuner.budget import Budget, Clock, parse_budget
from tuner.errors import BudgetError


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("60s", Budget(seconds=60.0)),
        ("1.5m", Budget(seconds=90.0)),
        (" 2 h ", Budget(seconds=7200.0)),
        ("40", Budget(trials=40)),
    ],
)
def test_budgets_are_seconds_or_trials(text, budget):
    assert parse_budget(text) == budget


@pytest.mark.parametrize("text", ["", "0", "0s", "-3", "4.5", "1d", "soon", "1e3", "s", "٣"])
def test_anything_else_is_refused(text):
    with pytest.raises(BudgetError, match="budget"):
        parse_budget(text)


def test_a_budget_of_trials_counts_all_trials_of_a_study():
    clock = Clock(Budget(trials=4))
    assert not clock.spent(3)
    assert clock.spent(4)
    assert (clock.share(0), clock.share(2), clock.share(9)) == (0.0, 0.5, 1.0)


def test_a_budget_of_seconds_ends_whatever_was_tried():
    clock = Clock(Budget(seconds=10.0), started=time.monotonic() - 11)
    assert clock.spent(0)
    assert clock.share(0) == 1.0
    assert not Clock(Budget(seconds=1000.0)).spent(10**6)


def test_of_seconds_and_trials_what_is_reached_first_ends_it():
    budget = Budget(seconds=10.0, trials=4)
    assert str(budget) == "10 s or 4 trials"
    assert Clock(budget).spent(4)
    assert not Clock(budget).spent(3)
    assert Clock(budget).left(3) == 1
    assert Clock(budget, started=time.monotonic() - 11).spent(0)


def test_only_a_strict_budget_of_seconds_limits_the_wait():
    started = time.monotonic() - 4
    assert Clock(Budget(seconds=10.0), started).patience() == math.inf
    assert Clock(Budget(trials=3, strict=True), started).patience() == math.inf
    assert 5.0 < Clock(Budget(seconds=10.0, strict=True), started).patience() <= 6.0
