"""Packed sequences without tokens, through the public operator on Triton's kernels."""

from __future__ import annotations

import pytest
import torch

from codegen.rule import Rule
from tests.support.inputs import make_inputs
from tests.support.relative_error import assert_close
from trellis_ops import reference, trellis_attention

OFFSETS = torch.tensor([0, 0, 5, 5, 23, 23])
EMPTY = [0, 2, 4]


@pytest.mark.parametrize(("chunk", "outer_gradient"), [(4, "bilevel"), (16, "bilevel"), (16, "first_order")])
def test_states_and_cotangents_pass_through(chunk, outer_gradient):
    x = make_inputs(1, 23, 1, 8, 6, 5, sequences=5)
    incoming = [torch.ones_like(t) for t in (x.v, *x.initial_state)]
    options = {"chunk_size": chunk, "cu_seqlens": OFFSETS, "outer_gradient": outer_gradient}

    maps = {"phi_eps": 1e-2, "output_final_state": True, "implementation": "triton"}
    _, plain = trellis_attention(*x.args, initial_state=x.initial_state, **maps, **options)
    leaves = x.leaves()
    y, finals = trellis_attention(*leaves.args, initial_state=leaves.initial_state, **maps, **options)
    found = torch.autograd.grad((y, *finals), leaves.tensors, incoming)
    *_, of_s_k, of_s_v = found

    exact = x.to(torch.float64).leaves()
    expected_y, expected_finals = reference.attention(
        *exact.args, rule=Rule(phi_eps=1e-2), initial_state=exact.initial_state, **options
    )
    expected = torch.autograd.grad(
        (expected_y, *expected_finals), exact.tensors, [cotangent.double() for cotangent in incoming]
    )
    assert_close(y.detach(), expected_y.detach(), 1e-5, "y")
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, 1e-4, "gradient")
    _, *of_finals = incoming
    states = zip(x.initial_state, plain, finals, (of_s_k, of_s_v), of_finals, strict=True)
    for initial, without_gradient, final, gradient, cotangent in states:
        assert torch.equal(without_gradient[EMPTY], initial[EMPTY])
        assert torch.equal(final[EMPTY], initial[EMPTY])
        assert torch.equal(gradient[EMPTY], cotangent[EMPTY])
