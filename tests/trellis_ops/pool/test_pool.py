"""Rows on their slots of a pool against the oracle on each sequence alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codegen.rule import Rule
from codegen.rules import rule_named
from tests.support.pooled import Served, expected, serving, turns
from tests.support.relative_error import relative_error
from tests.trellis_ops.family.cases import CHUNKS, Case, rules

CASES = {
    "trellis": Case(Rule(step_size="token"), chunk=4, batch=3, tokens=19, dim_k=17, dim_v=20, slots=5),
    "trellis, exact": Case(Rule("softmax", step_size="head"), batch=3, tokens=9, dim_k=8, dim_v=3, slots=16),
    "trellis, chunks longer than sequences": Case(Rule(), chunk=64, batch=2, tokens=9),
    "gated_deltanet": Case(rule_named("gated_deltanet"), batch=3, tokens=9, dim_k=17, dim_v=20),
    "window, momentum": Case(
        Rule("identity", link="identity", passes=1, momentum=True, window=3, step_size="token"), chunk=3, batch=3
    ),
    "normaliser": Case(Rule("identity", passes=1, normaliser="both", step_size="token"), chunk=3, batch=3, tokens=9),
    "reader_writer": Case(
        Rule("identity", passes=1, decay="none", step_size="reader_writer"), chunk=3, batch=3, tokens=9
    ),
    "hebbian": Case(Rule("hebbian", passes=1, step_size="token"), chunk=3, batch=3),
}


def served_to_the_end(case: Case, implementation: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> Served:
    slots = tuple(range(case.batch, 0, -1))
    served = serving(case, slots, case.batch + 2, dtype)
    for number, turn in enumerate(turns(case, seed)):
        beside = served.call(turn, implementation, skipped=number % 2)
        assert not beside.any(), "y of a row that is skipped is zero"
    return served


@pytest.mark.parametrize("implementation", ["eager", "tvm"])
@pytest.mark.parametrize("name", CASES)
def test_rows_that_take_turns_are_each_as_alone(name, implementation):
    served = served_to_the_end(CASES[name], implementation)
    for n, right in enumerate(expected(served)):
        assert relative_error(torch.cat(served.y[n]), right) < 1e-5
    # Whatever no sequence owns is bit for bit as it was: other slots, and what lies between states.
    owned = torch.zeros_like(served.block, dtype=torch.bool)
    for pool in (*served.state, *served.starts):
        place = owned.as_strided(pool.shape, pool.stride(), pool.storage_offset())
        for slot in served.slots:
            place[slot] = True
    assert served.block[~owned].isnan().all()
    assert all(pool[list(served.slots)].isfinite().all() for pool in served.state), "every state is written"


@given(st.sampled_from(CHUNKS), rules(), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_any_rule_in_any_turns(chunk, rule, seed):
    case = Case(rule, 1 if rule.decay_first else chunk, batch=2, tokens=7, seed=seed)
    served = served_to_the_end(case, "eager", seed, torch.float64)
    for n, right in enumerate(expected(served)):
        assert relative_error(torch.cat(served.y[n]), right) < 1e-9


@pytest.mark.parametrize("implementation", ["eager", "tvm"])
def test_a_slot_is_used_again_from_zero(implementation):
    case = CASES["trellis"]
    served = serving(case, (0, 0, 0), 1)
    for n in range(case.batch):
        served.call({n: 5}, implementation, from_zero=True)
        served.call({n: 1}, implementation, from_zero=True)
    right = expected(served, from_zero=True)
    for n in range(case.batch):
        assert relative_error(torch.cat(served.y[n]), right[n, :6]) < 1e-5


@pytest.mark.parametrize("implementation", ["eager", "tvm"])
def test_bfloat16(implementation):
    served = served_to_the_end(CASES["trellis"], implementation, dtype=torch.bfloat16)
    for n, right in enumerate(expected(served)):
        assert relative_error(torch.cat(served.y[n]), right) < 2e-2
