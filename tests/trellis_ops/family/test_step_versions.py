"""Autograd is told of all that a step of any rule writes, and states that were made in inference mode are moved."""

from __future__ import annotations

import pytest
import torch

from codegen.recurrence.tensors import tensors
from codegen.rules import rule_named
from tests.trellis_ops.family.cases import Case
from tests.trellis_ops.test_memory import arguments, call
from trellis_ops import chunk_start, forget, memory_step

IMPLEMENTATIONS = pytest.mark.parametrize("implementation", ["eager", "tvm"])
CALLS = pytest.mark.parametrize("calls_before", [0, 1], ids=["first call", "later call"])
"""From the second call on TVM's kernel is found without looking at every tensor."""
RULES = pytest.mark.parametrize("name", ["titans", "omeganet", "ttt_linear"])


@pytest.fixture(autouse=True)
def fresh():
    forget()
    yield
    forget()


def of_rule(name):
    """The arguments of a step, and functions that make its states and those of its chunk's start anew."""
    rule = rule_named(name)
    _, initial, given, _ = call(rule, Case(rule, batch=2, tokens=11, heads=2, dim_k=6, dim_v=5, slots=4))
    per_head = {each.name for each in tensors(rule) if each.per == "head"}
    token = {key: x if key in per_head else x[:, 0].contiguous() for key, x in given.items()}
    starts = () if rule.decay_first else chunk_start(rule, initial)

    def copies():
        return tuple(x.clone() for x in initial), tuple(x.clone() for x in starts) or None

    return arguments(rule, token), copies


@IMPLEMENTATIONS
@CALLS
@RULES
def test_a_backward_through_what_a_step_has_moved_raises(name, implementation, calls_before):
    token, copies = of_rule(name)
    for _ in range(calls_before):
        state, starts = copies()
        memory_step(**token, state=state, chunk_state=starts, implementation=implementation)
    state, starts = copies()
    before = [x.clone() for x in (*state, *(starts or ()))]
    earlier = [(x.new_ones(()).requires_grad_() * x).sum() for x in (*state, *(starts or ()))]
    memory_step(**token, state=state, chunk_state=starts, implementation=implementation)
    moved = [not torch.equal(x, old) for x, old in zip((*state, *(starts or ())), before, strict=True)]
    assert any(moved)
    for total, has_moved in zip(earlier, moved, strict=True):
        if has_moved:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                total.backward()
    assert all(x._version == 0 for x in token.values() if isinstance(x, torch.Tensor))


@pytest.mark.parametrize(
    ("implementation", "mode"), [("eager", "inside"), ("tvm", "inside"), ("tvm", "outside"), ("tvm", "strided outside")]
)
@RULES
def test_states_of_inference_mode_are_moved(name, implementation, mode):
    """By kernels also outside of it, where torch refuses to write to such states."""
    token, copies = of_rule(name)
    with torch.inference_mode():
        found, found_starts = copies()
        if mode.startswith("strided"):
            found = tuple(x.mT.contiguous().mT if x.ndim == 4 else x for x in found)
    state, starts = copies()
    for _ in range(2):
        right = memory_step(**token, state=state, chunk_state=starts, implementation=implementation)
        with torch.inference_mode(mode == "inside"), torch.no_grad():
            y = memory_step(**token, state=found, chunk_state=found_starts, implementation=implementation)
        assert torch.equal(y, right)
    assert all(x.is_inference() for x in (*found, *(found_starts or ())))
    for x, other in zip((*found, *(found_starts or ())), (*state, *(starts or ())), strict=True):
        assert torch.equal(x, other)
