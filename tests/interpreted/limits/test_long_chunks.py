"""Chunks far longer than the sequences, on Triton's kernels, whose offsets are 32-bit numbers."""

from __future__ import annotations

import pytest
import torch

from codegen.rule import Rule
from tests.support.inputs import make_inputs
from tests.support.relative_error import assert_close
from trellis_ops import explain, memory_readout, memory_update, reference, trellis_attention

RULE = Rule("silu", link="silu")


@pytest.mark.parametrize("offsets", [None, torch.tensor([0, 15, 20])])
def test_attention_and_its_gradient(offsets):
    x = make_inputs(1, 20, 1, 8, 6, 5, sequences=None if offsets is None else 2)
    leaves, exact = x.leaves(), x.to(torch.float64).leaves()
    options = {"cu_seqlens": offsets, "chunk_size": 2**31 - 1, "implementation": "triton"}
    y, _ = trellis_attention(*leaves.args, phi="silu", link="silu", initial_state=leaves.initial_state, **options)
    expected, _ = reference.attention(
        *exact.args, rule=RULE, chunk_size=20, initial_state=exact.initial_state, cu_seqlens=offsets
    )
    assert_close(y.detach(), expected.detach(), 1e-5, "y")
    found = torch.autograd.grad(y.sum(), leaves.tensors)
    for one, other in zip(found, torch.autograd.grad(expected.sum(), exact.tensors), strict=True):
        assert_close(one, other, 1e-4, "gradients")


def test_the_parts():
    x = make_inputs(1, 20, 1, 8, 6, 5)
    memory, options = (x.k, x.target, x.log_decay, x.step_size), {"chunk_size": 2**31, "implementation": "triton"}
    states, codes, final = memory_update(*memory, phi="silu", initial_state=x.initial_state[0], **options)
    expected = reference.update(*memory, rule=RULE, chunk_size=20, initial_state=x.initial_state[0])
    for one, other in zip((states, codes, final), expected, strict=True):
        assert_close(one, other, 1e-5, "update")
    o = memory_readout(x.q, x.k, states, codes, x.log_decay, x.step_size, **options)
    assert_close(o, reference.readout(x.q, x.k, states, codes, *memory[2:], chunk_size=20), 1e-5, "readout")
    assert explain(memory_update, *memory, **options).implementation == "triton"
