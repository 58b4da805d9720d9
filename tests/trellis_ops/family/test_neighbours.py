"""What is not a number in one head of a sequence shows there, and reaches no other head and no other sequence."""

from __future__ import annotations

import math

import pytest
import torch

from codegen.rules import rule_named
from tests.support.inputs import make_inputs
from tests.trellis_ops.family.cases import Case
from tests.trellis_ops.test_memory import arguments, call
from trellis_ops import memory_attention, memory_step, trellis_step

POISONS = pytest.mark.parametrize(("key", "value"), [("k", math.nan), ("log_decay", math.nan), ("log_decay", math.inf)])
PADDED, WHOLE = {"dim_k": 6, "dim_v": 5}, {"dim_k": 16, "dim_v": 16}


@POISONS
@pytest.mark.parametrize(("rule", "sizes"), [("titans", PADDED), ("kda", WHOLE), ("gsa", PADDED)])
def test_attention(rule, sizes, key, value):
    made = rule_named(rule)
    named, *_ = call(made, Case(made, batch=2, tokens=70, heads=3, slots=4, **sizes))
    clean, _ = memory_attention(**named, implementation="tvm")
    poisoned = named | {key: named[key].clone()}
    poisoned[key][0, 40, 1].view(-1)[0] = value
    y, _ = memory_attention(**poisoned, implementation="tvm")
    assert not y[0, 40:, 1].isfinite().all(-1).any()
    y[0, :, 1] = clean[0, :, 1]
    assert torch.equal(y, clean)


@pytest.mark.parametrize("sizes", [PADDED, WHOLE], ids=["padding", "no padding"])
@pytest.mark.parametrize(("rule", "tokens"), [("titans", 20), ("kda", 70)])
@pytest.mark.parametrize(("key", "value"), [("v", math.nan), ("log_decay", math.nan), ("log_decay", math.inf)])
def test_gradients(rule, tokens, sizes, key, value):
    """Heads of both sequences share a worker's scratch with the poisoned one."""
    made = rule_named(rule)
    named, *_ = call(made, Case(made, batch=2, tokens=tokens, heads=3, slots=4, **sizes))
    found = []
    for poisoned in (True, False):
        given = {name: x.clone() if isinstance(x, torch.Tensor) else x for name, x in named.items()}
        if poisoned:
            given[key][0, 9, 1].view(-1)[0] = value
        leaves = [x.requires_grad_() for x in given.values() if isinstance(x, torch.Tensor)]
        y, states = memory_attention(**given, output_final_state=True, implementation="tvm")
        total = y.square().sum() + sum(s.square().sum() for s in states)
        found.append((y.detach(), *torch.autograd.grad(total, leaves)))
    y, *gradients = (x[0, :, 1] for x in found[0])
    assert not y[9:].isfinite().all(-1).any(), "it stays visible from its token on"
    assert not all(x.isfinite().all() for x in gradients)
    for x, clean in zip(*found, strict=True):
        assert clean.isfinite().all()
        x[0, :, 1] = clean[0, :, 1]
        assert torch.equal(x, clean)


@POISONS
@pytest.mark.parametrize(("rule", "sizes"), [("titans", PADDED), ("gated_deltanet", PADDED), ("titans", WHOLE)])
def test_step(rule, sizes, key, value):
    made = rule_named(rule)
    _, initial, given, _ = call(made, Case(made, batch=4, tokens=1, heads=3, **sizes))
    found = []
    for poisoned, implementation in ((False, "tvm"), (True, "tvm"), (True, "eager")):
        token = {name: x if x.ndim == 1 else x[:, 0].clone() for name, x in given.items()}
        if poisoned:
            token[key][1, 0].view(-1)[0] = value
        state = tuple(x.clone() for x in initial)
        y = memory_step(**arguments(made, token), state=state, implementation=implementation)
        found.append((y, *state))
    clean, poisoned, eager = found
    shown = [not bool(x[1, 0].isfinite().all()) for x in poisoned]
    assert shown == [not bool(x[1, 0].isfinite().all()) for x in eager]
    assert shown[0] and shown[1]
    for x, right in zip(poisoned, clean, strict=True):
        x[1, 0] = right[1, 0]
        assert torch.equal(x, right)


@pytest.mark.parametrize("sizes", [(6, 5, 3), (16, 16, 16)], ids=["padding", "no padding"])
def test_a_row_of_a_pool(sizes):
    inputs = make_inputs(4, 1, 2, *sizes)
    rows, positions = torch.tensor([5, 0, 3, 2], dtype=torch.int32), torch.zeros(4, dtype=torch.int32)
    found = []
    for poisoned in (False, True):
        q, k, *rest = inputs.token(0)
        k = k.clone()
        if poisoned:
            k[1, 0, 0] = math.nan
        pools = tuple(torch.full((6, *s.shape[1:]), math.nan) for s in inputs.initial_state)
        y = trellis_step(q, k, *rest, pools, state_indices=rows, positions=positions, implementation="tvm")
        found.append((y, *(pool[rows.long()] for pool in pools)))
    assert found[1][0][1, 0].isnan().all()
    for clean, x in zip(*found, strict=True):
        assert clean.isfinite().all()
        x[1, 0] = clean[1, 0]
        assert torch.equal(x, clean)
