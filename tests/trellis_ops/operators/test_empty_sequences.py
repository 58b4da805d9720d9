"""Packed sequences without tokens: nothing is computed for them, and their states and cotangents pass through."""

from __future__ import annotations

import pytest
import torch

from codegen.rule import Rule
from tests.support.inputs import make_inputs
from tests.support.relative_error import assert_close
from trellis_ops import reference, trellis_attention
from trellis_ops.eager import backward
from trellis_ops.tokens import Tokens

OFFSETS = torch.tensor([0, 0, 7, 7, 7, 28, 28])
EMPTY = [0, 2, 3, 5]
RULE = Rule(phi_eps=1e-2)


def inputs(dtype: torch.dtype = torch.float32, **options: object):
    return make_inputs(1, 28, 2, 20, 12, 18, sequences=6, dtype=dtype, **options)


# The kernels' own tests have sequences without tokens, too, in every variant.
@pytest.mark.parametrize(
    ("implementation", "chunk"), [("eager", 1), ("eager", 4), ("eager", 64), ("tvm", 1), ("tvm", 20)]
)
@pytest.mark.parametrize("state", ["random", None])
def test_final_states_are_the_initial_ones(implementation, chunk, state):
    x = inputs(state=state)
    options = {"chunk_size": chunk, "initial_state": x.initial_state, "cu_seqlens": OFFSETS}
    y, finals = trellis_attention(
        *x.args, phi_eps=1e-2, output_final_state=True, implementation=implementation, **options
    )
    expected_y, expected_finals = reference.attention(*x.args, rule=RULE, **options)
    # From a zero state the first writes amplify rounding.
    tolerance = 1e-5 if state else 1e-4
    assert_close(y, expected_y, tolerance, "y")
    for index, (found, expected) in enumerate(zip(finals, expected_finals, strict=True)):
        assert_close(found, expected, tolerance, "states")
        initial = torch.zeros_like(found) if x.initial_state is None else x.initial_state[index]
        assert torch.equal(found[EMPTY], initial[EMPTY])


@pytest.mark.parametrize("implementation", ["eager", "tvm"])
def test_a_state_that_is_not_finite_passes_unchanged(implementation):
    x = inputs()
    for s in x.initial_state:
        s[EMPTY] = float("inf")
    options = {"initial_state": x.initial_state, "cu_seqlens": OFFSETS, "implementation": implementation}
    y, finals = trellis_attention(*x.args, phi_eps=1e-2, chunk_size=20, output_final_state=True, **options)
    assert y.isfinite().all()
    assert all(torch.equal(found[EMPTY], s[EMPTY]) for found, s in zip(finals, x.initial_state, strict=True))


@pytest.mark.parametrize("outer_gradient", ["bilevel", "first_order"])
@pytest.mark.parametrize(("implementation", "chunk"), [("eager", 1), ("eager", 4), ("tvm", 20)])
def test_gradients(implementation, chunk, outer_gradient):
    x = inputs()
    generator = torch.Generator().manual_seed(2)
    incoming = [torch.randn(t.shape, generator=generator) for t in (x.v, *x.initial_state)]
    options = {"chunk_size": chunk, "cu_seqlens": OFFSETS, "outer_gradient": outer_gradient}

    leaves = x.leaves()
    y, finals = trellis_attention(
        *leaves.args,
        phi_eps=1e-2,
        output_final_state=True,
        initial_state=leaves.initial_state,
        implementation=implementation,
        **options,
    )
    found = torch.autograd.grad((y, *finals), leaves.tensors, incoming)

    exact = x.to(torch.float64).leaves()
    y, finals = reference.attention(*exact.args, rule=RULE, initial_state=exact.initial_state, **options)
    expected = torch.autograd.grad((y, *finals), exact.tensors, [cotangent.double() for cotangent in incoming])
    for name, one, other in zip((*Tokens._fields, "S_k", "S_v"), found, expected, strict=True):
        assert_close(one, other, 1e-4, name)
    (*_, of_s_k, of_s_v), (_, *of_finals) = found, incoming
    for gradient, cotangent in zip((of_s_k, of_s_v), of_finals, strict=True):
        assert torch.equal(gradient[EMPTY], cotangent[EMPTY])


def test_the_reverse_pass_in_eager_pytorch():
    x = inputs(torch.float64)
    incoming = [torch.ones_like(t) for t in (x.v, *x.initial_state)]
    tokens, states = backward.attention(
        *x.args,
        incoming[0],
        (incoming[1], incoming[2]),
        rule=RULE,
        chunk_size=4,
        initial_state=x.initial_state,
        cu_seqlens=OFFSETS,
    )
    leaves = x.leaves()
    y, finals = reference.attention(
        *leaves.args, rule=RULE, chunk_size=4, initial_state=leaves.initial_state, cu_seqlens=OFFSETS
    )
    expected = torch.autograd.grad((y, *finals), leaves.tensors, incoming)
    for one, other in zip((*tokens[:5], *states), (*expected[:5], *expected[6:]), strict=True):
        assert_close(one, other, 1e-10, "gradient")
