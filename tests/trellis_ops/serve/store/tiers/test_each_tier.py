"""What every tier does alike."""

from __future__ import annotations

import threading

import pytest
import torch

from codegen.errors import SizeError
from tests.trellis_ops.serve.store.stores import KEY, entry
from trellis_ops.serve.store.chain import REGISTERED, TENANT, Secrets
from trellis_ops.serve.store.sealing import seal

SECRETS = Secrets.of(KEY)
ALICE, OPERATOR = SECRETS.owner("model", TENANT, "alice"), SECRETS.owner("model", REGISTERED)


def state(number, owner):
    """Entry `number` of an owner, of as many segments; as of real chains, no owner has a key of another."""
    return entry(number + 100 * owner.pinned, 64 * number, owner)


def stored(tier, owner, most=5):
    """The numbers of the entries up to `most` that `tier` has."""
    expected = {state(number, owner): number for number in range(1, most + 1)}
    return [expected[each] for each in tier.longest(owner, [each.key for each in expected], 64)]


def test_what_is_saved_is_found_and_loaded_as_the_same_bytes(make_tier):
    tier = make_tier()
    sealed = seal(SECRETS, state(2, ALICE), {"S": torch.randn(5)})
    assert tier.load(state(2, ALICE)) is None
    assert tier.save(state(2, ALICE), sealed)
    assert tier.load(state(2, ALICE)) == sealed
    assert tier.save(state(4, ALICE), b"long\0\r\n\xff")
    assert stored(tier, ALICE) == [4, 2]
    assert stored(tier, ALICE, 0) == []
    assert tier.labels() == {ALICE.label}


def test_a_state_that_is_saved_again_is_replaced(make_tier):
    tier = make_tier(quota=20)
    for sealed in (b"first", b"the second one", b"third"):
        assert tier.save(state(1, ALICE), sealed)
        assert tier.load(state(1, ALICE)) == sealed
    assert tier.save(state(2, ALICE), b"15 bytes longer")
    assert stored(tier, ALICE, 2) == [2, 1]


def test_what_is_dropped_is_gone_and_makes_room(make_tier):
    tier = make_tier(quota=10)
    tier.drop(state(1, ALICE))
    tier.save(state(1, ALICE), b"7 bytes")
    tier.drop(state(1, ALICE))
    assert tier.load(state(1, ALICE)) is None
    assert stored(tier, ALICE, 1) == []
    for number in (1, 2):
        tier.save(state(number, ALICE), b"5 byte")
    assert stored(tier, ALICE, 2) == [2]


def test_the_quota_keeps_what_is_used(make_tier):
    tier = make_tier(quota=30)
    for number in (1, 2, 3):
        assert tier.save(state(number, ALICE), b"ten bytes.")
    for _ in range(9):
        assert tier.load(state(1, ALICE))
    assert tier.save(state(4, ALICE), b"ten bytes.")
    assert stored(tier, ALICE, 4) == [4, 3, 1]
    assert not tier.save(state(5, ALICE), b"x" * 31)
    assert tier.load(state(2, ALICE)) is None


def test_what_an_operator_registered_has_no_quota_and_stays(make_tier):
    tier = make_tier(quota=20)
    for number in (1, 2, 3):
        assert tier.save(state(number, OPERATOR), b"ten bytes.")
        assert tier.save(state(10 + number, ALICE), b"ten bytes.")
    assert len(stored(tier, OPERATOR)) == 3
    assert len(stored(tier, ALICE, 13)) == 2
    assert tier.load(state(2, OPERATOR)) == b"ten bytes."


def test_threads_save_and_load_one_key(make_tier):
    tier, states = make_tier(), [bytes([number]) * 5000 for number in range(4)]
    tier.save(state(1, ALICE), states[0])
    wrong = []

    def work(sealed):
        for _ in range(15):
            tier.save(state(1, ALICE), sealed)
            if tier.load(state(1, ALICE)) not in states:
                wrong.append(sealed)

    threads = [threading.Thread(target=work, args=(sealed,)) for sealed in states]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_another_tier_of_the_same_place_has_the_states(make_tier):
    first, second = make_tier(), make_tier()
    first.save(state(1, ALICE), b"state")
    first.save(state(2, OPERATOR), b"registered")
    if first.name == "memory":
        assert second.load(state(1, ALICE)) is None
        return
    third = make_tier()
    for tier in (second, third):
        assert tier.load(state(1, ALICE)) == b"state"
        assert stored(tier, OPERATOR, 2) == [2]


def test_a_quota_below_one_byte_is_refused(make_tier):
    with pytest.raises(SizeError):
        make_tier(quota=0)
