from __future__ import annotations

import pytest

from tuner.search.guesses import FEWEST_TO_JUDGE, is_worth_nothing, order_quality


def test_the_quality_of_an_order():
    assert order_quality([1.0, 2.0, 3.0], [10.0, 20.0, 40.0]) == pytest.approx(1.0)
    assert order_quality([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]) == pytest.approx(-1.0)
    assert order_quality([1.0, 1.0, 3.0], [1.0, 1.0, 2.0]) == pytest.approx(1.0)
    assert order_quality([1.0, 2.0], [1.0, 2.0]) is None
    assert order_quality([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None


def test_guesses_that_order_no_better_than_chance_are_dropped_once_enough_times_are_known():
    enough = range(FEWEST_TO_JUDGE)
    assert not is_worth_nothing([(float(n), float(n)) for n in enough])
    assert is_worth_nothing([(float(n), float(-n)) for n in enough])
    assert not is_worth_nothing([(float(n), float(-n)) for n in enough[1:]])
    assert not is_worth_nothing([(1.0, float(n)) for n in enough])
