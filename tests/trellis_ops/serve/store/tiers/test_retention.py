from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen.errors import SizeError
from tests.trellis_ops.serve.store.stores import entry
from trellis_ops.serve.store.entry import Owner
from trellis_ops.serve.store.tiers.retention import Retention

ALICE, BOB = Owner("a" * 32, "a" * 32), Owner("a" * 32, "b" * 32)
OPERATOR = Owner("a" * 32, "c" * 32, pinned=True, common=True)


def kept(retention):
    return {int(each.key, 16) for each in retention.entries()}


def test_what_saves_fewest_tokens_goes_first():
    retention = Retention(30)
    for number, tokens in ((1, 64), (2, 640), (3, 128)):
        assert retention.add(entry(number, tokens), 10) == []
    assert [int(each.key, 16) for each in retention.add(entry(4, 64), 10)] == [1]
    assert kept(retention) == {2, 3, 4}


def test_what_is_reused_stays_and_what_nobody_uses_any_more_is_overtaken():
    retention = Retention(20)
    retention.add(entry(1, 64), 10)
    retention.add(entry(2, 64), 10)
    for _ in range(3):
        retention.use(entry(1).key)
    assert [int(each.key, 16) for each in retention.add(entry(3, 64), 10)] == [2]
    gone = [int(each.key, 16) for number in range(4, 10) for each in retention.add(entry(number, 64), 10)]
    assert 1 in gone


def test_a_smaller_state_stays_longer():
    retention = Retention(30)
    retention.add(entry(1, 64), 20)
    retention.add(entry(2, 64), 10)
    assert [int(each.key, 16) for each in retention.add(entry(3, 64), 10)] == [1]


def test_a_quota_costs_its_owner_and_nobody_else():
    retention = Retention(100, quota_bytes=20)
    retention.add(entry(1, 64, ALICE), 10)
    retention.add(entry(2, 64, BOB), 10)
    retention.add(entry(3, 640, BOB), 10)
    assert [each.owner for each in retention.add(entry(4, 640, BOB), 10)] == [BOB]
    assert kept(retention) == {1, 3, 4}


def test_pinned_states_stay_and_what_then_finds_no_room_is_refused():
    retention = Retention(30, quota_bytes=20)
    for number in (1, 2):
        assert retention.add(entry(number, 64, OPERATOR), 14) == []
    assert retention.add(entry(3, 6400, ALICE), 10) is None
    assert retention.add(entry(4, 64, ALICE), 2) == []
    assert retention.add(entry(5, 64, OPERATOR), 31) is None
    assert retention.add(entry(6, 64, ALICE), 21) is None
    assert kept(retention) == {1, 2, 4}
    assert retention.total == 30


def test_a_state_that_is_saved_again_counts_once():
    retention = Retention(30)
    for size in (10, 25, 5):
        assert retention.add(entry(1), size) == []
        assert retention.total == retention.bytes_of(entry().owner) == size
    assert retention.add(entry(1), 31) is None
    assert retention.total == 5
    retention.remove(entry(1).key)
    retention.remove(entry(1).key)
    assert (retention.total, len(retention)) == (0, 0)


def test_what_holds_nothing_is_counted_and_forgotten():
    retention = Retention(30)
    for number in (1, 2):
        assert retention.add(entry(number), 0) == []
    for number in (1, 2):
        retention.use(entry(number).key)
        retention.remove(entry(number).key)
    assert (retention.total, len(retention)) == (0, 0)


ADDED = st.tuples(st.integers(0, 9), st.sampled_from([ALICE, BOB, OPERATOR]), st.integers(1, 12), st.integers(1, 999))


@given(st.lists(ADDED, max_size=40))
def test_bounds_and_quotas_hold_and_what_goes_is_told(added):
    retention, sizes = Retention(40, quota_bytes=25), {}
    for number, owner, size, tokens in added:
        key = entry(number + 100 * [ALICE, BOB, OPERATOR].index(owner), tokens, owner)
        going = retention.add(key, size)
        for each in going or ():
            assert not each.owner.pinned
            del sizes[each.key]
        if going is not None:
            sizes[key.key] = size
        assert retention.total == sum(sizes.values()) <= 40
        assert max(retention.bytes_of(each) for each in (ALICE, BOB)) <= 25
        assert {each.key for each in retention.entries()} == sizes.keys()


@pytest.mark.parametrize("bounds", [(0, None), (10, 0), (-1, 5)])
def test_a_bound_below_one_byte_is_refused(bounds):
    with pytest.raises(SizeError):
        Retention(*bounds)
