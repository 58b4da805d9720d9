"""What is not a number in one head of a sequence shows there, and reaches no other, in Triton's kernels of any rule."""

from __future__ import annotations

import math

import pytest
import torch

from codegen.rules import rule_named
from tests.trellis_ops.family.cases import Case
from tests.trellis_ops.test_memory import call
from trellis_ops import memory_attention

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.mark.parametrize(("rule", "tokens"), [("titans", 4), ("kda", 20)])
@pytest.mark.parametrize("key", ["k", "log_decay"])
def test_attention_and_its_gradients(rule, tokens, key):
    made = rule_named(rule)
    named, *_ = call(made, Case(made, batch=2, tokens=tokens, heads=2, dim_k=6, dim_v=5))
    found = []
    for poisoned in (False, True):
        given = named | {name: named[name].clone().requires_grad_() for name in ("q", "k", "v")}
        if poisoned:
            with torch.no_grad():
                given[key] = given[key].clone()
                given[key][0, 2, 0].view(-1)[0] = math.nan
            given["k"].requires_grad_()
        y, _ = memory_attention(**given, implementation="triton")
        found.append((y, *torch.autograd.grad(y.sum(), [given[name] for name in ("q", "k", "v")])))
    assert not found[1][0][0, 2:, 0].isfinite().all(-1).any()
    for clean, x in zip(*found, strict=True):
        x = x.detach().clone()
        x[0, :, 0] = clean[0, :, 0]
        assert torch.equal(x, clean)
