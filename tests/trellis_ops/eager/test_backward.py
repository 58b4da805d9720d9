"""The explicit reverse pass in float64 against autograd of the oracle, and as the gradient of the operator."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from codegen.rule import MAPS, Rule
from tests.support.inputs import Inputs, make_inputs
from tests.support.relative_error import assert_close
from trellis_ops import reference, trellis_attention
from trellis_ops.eager import backward
from trellis_ops.eager import forward as eager
from trellis_ops.tokens import Tokens

NAMES = (*Tokens._fields, "S_k", "S_v")
IMPLEMENTATIONS = pytest.mark.parametrize("implementation", ["eager", "tvm"])
BOTH = pytest.mark.parametrize("outer_gradient", ["bilevel", "first_order"])


def check(x: Inputs, rule: Rule, chunk_size: int, outer_gradient: str = "bilevel", **options: Any) -> None:
    options |= {"rule": rule, "chunk_size": chunk_size, "outer_gradient": outer_gradient}
    leaves = x.leaves()
    y, states = reference.attention(*leaves.args, initial_state=leaves.initial_state, **options)
    generator = torch.Generator().manual_seed(0)
    incoming = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in (y, *states)]
    expected = torch.autograd.grad((y, *states), leaves.tensors, incoming)
    tokens, (dk, dv) = backward.attention(
        *x.args, incoming[0], (incoming[1], incoming[2]), initial_state=x.initial_state, **options
    )
    dstep_size = tokens.step_size if x.step_size.dim() > 1 else tokens.step_size.sum(dim=(0, 1))
    for name, actual, wanted in zip(NAMES, (*tokens[:5], dstep_size, dk, dv), expected, strict=True):
        assert_close(actual, wanted, 1e-9, name)


@BOTH
@pytest.mark.parametrize("chunk_size", [1, 5, 16])
@pytest.mark.parametrize("phi", MAPS)
def test_every_write_map(phi: str, chunk_size: int, outer_gradient: str) -> None:
    x = make_inputs(2, 12, 2, 6, 5, 7, dtype=torch.float64)
    check(x, Rule(phi, link="softmax", out="silu"), chunk_size, outer_gradient)


@pytest.mark.parametrize("name", MAPS)
def test_every_readout_map_from_a_zero_state(name: str) -> None:
    x = make_inputs(1, 11, 2, 6, 6, 7, dtype=torch.float64, step_size="token", state="zero")
    check(x, Rule(name, link=name, out=name, phi_eps=1e-2, step_size="token"), 4)


@BOTH
@pytest.mark.parametrize("chunk_size", [1, 16])
@pytest.mark.parametrize("log_decay", [-40.0, -float("inf")])
def test_strong_forgetting(log_decay: float, chunk_size: int, outer_gradient: str) -> None:
    """The chunk is ragged: 45 tokens."""
    check(make_inputs(1, 45, 2, 6, 6, 7, dtype=torch.float64, log_decay=log_decay), Rule(), chunk_size, outer_gradient)


def test_forgetting_only_now_and_then() -> None:
    x = make_inputs(1, 45, 2, 6, 6, 7, dtype=torch.float64)
    x.log_decay[:, ::3] = float("-inf")
    x.log_decay[:, 1::3] = -40.0
    check(x, Rule(phi_eps=1e-2), 16)


@pytest.mark.parametrize("shape", [(1, 1, 1, 3, 3, 1), (1, 6, 2, 1, 4, 2), (2, 9, 3, 12, 5, 9)])
def test_shapes(shape: tuple[int, ...]) -> None:
    check(make_inputs(*shape, dtype=torch.float64), Rule(phi_eps=1e-2), 4)


def test_packed_sequences() -> None:
    x = make_inputs(1, 20, 2, 6, 5, 4, dtype=torch.float64, sequences=4, step_size="token")
    check(x, Rule(phi_eps=1e-2), 4, cu_seqlens=torch.tensor([0, 3, 3, 10, 20]))


@pytest.mark.parametrize("chunk_size", [1, 4])
def test_several_segments(chunk_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(eager._SEGMENT_ELEMENTS, "cpu", 0)
    check(make_inputs(2, 42, 2, dtype=torch.float64), Rule(phi_eps=1e-2), chunk_size)


# The sizes, rules and chunks of the kernels' own tests: each kernel is compiled once for both.
DIMS = (20, 12, 18)


def leaves_of(dtype: torch.dtype = torch.float32, **options: Any) -> Inputs:
    return make_inputs(1, 21, 2, *DIMS, dtype=dtype, **options).leaves()


def loss_of(x: Inputs, implementation: str, **options: Any) -> Tensor:
    options = {"phi_eps": 1e-2, "chunk_size": 20, "initial_state": x.initial_state} | options
    y, states = trellis_attention(*x.args, **options, output_final_state=True, implementation=implementation)
    assert states is not None
    return y.float().square().sum() + sum(s.square().sum() for s in states)


@IMPLEMENTATIONS
def test_one_graph_used_twice_gives_the_same_gradients_again(implementation: str) -> None:
    x = leaves_of()
    loss = loss_of(x, implementation)
    first = torch.autograd.grad(loss, x.tensors, retain_graph=True)
    for one, other in zip(first, torch.autograd.grad(loss, x.tensors), strict=True):
        assert torch.equal(one, other)


@IMPLEMENTATIONS
@pytest.mark.parametrize("name", NAMES)
def test_one_gradient_alone_equals_that_among_all(name: str, implementation: str) -> None:
    x = leaves_of()
    index = NAMES.index(name)
    together = torch.autograd.grad(loss_of(x, implementation), x.tensors)[index]
    alone = x.map(Tensor.detach)
    leaf = alone.tensors[index].requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(alone, implementation), leaf)
    assert torch.equal(gradient, together)


@IMPLEMENTATIONS
@pytest.mark.parametrize("chunk_size", [1, 16])
def test_nearly_equal_slots_lose_no_more_digits_than_their_difference_has(chunk_size: int, implementation: str) -> None:
    """The gradient of k sums cotangents of z that are far larger."""
    x = make_inputs(1, 4, 2, 32, 8, 16)
    assert x.initial_state is not None
    s_k, s_v = x.initial_state
    x = dataclasses.replace(x, initial_state=(s_k[:, :, :1] + 0.01 * s_k, s_v))
    right, given = x.to(torch.float64).leaves(), x.leaves()
    options: dict[str, Any] = {"chunk_size": chunk_size}
    expected, _ = reference.attention(
        *right.args, rule=Rule("ln_silu", "identity", "identity"), initial_state=right.initial_state, **options
    )
    options |= {"phi": "ln_silu", "link": "identity", "out": "identity", "implementation": implementation}
    y, _ = trellis_attention(*given.args, initial_state=given.initial_state, **options)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    (dk,) = torch.autograd.grad(y, given.k, cotangent)
    assert_close(dk, *torch.autograd.grad(expected, right.k, cotangent.double()), 5e-5, "k")


@IMPLEMENTATIONS
def test_gradients_have_the_types_of_their_inputs(implementation: str) -> None:
    x = leaves_of(torch.bfloat16)
    gradients = torch.autograd.grad(loss_of(x, implementation), x.tensors)
    for leaf, gradient in zip(x.tensors, gradients, strict=True):
        assert gradient.dtype == leaf.dtype
        assert gradient.shape == leaf.shape
        assert gradient.isfinite().all()


@IMPLEMENTATIONS
@pytest.mark.parametrize("reentrant", [True, False])
def test_under_activation_checkpointing(reentrant: bool, implementation: str) -> None:
    x, same = leaves_of(), leaves_of()

    def run(*tensors: Tensor) -> Tensor:
        *tokens, s_k, s_v = tensors
        return loss_of(Inputs(*tokens, initial_state=(s_k, s_v)), implementation)

    torch.utils.checkpoint.checkpoint(run, *x.tensors, use_reentrant=reentrant).backward()
    run(*same.tensors).backward()
    for one, other in zip(x.tensors, same.tensors, strict=True):
        assert torch.equal(one.grad, other.grad)


def test_the_kernel_and_the_eager_reverse_pass_agree_on_packed_sequences() -> None:
    x = make_inputs(1, 60, 2, *DIMS, sequences=3).leaves()
    options = {"cu_seqlens": torch.tensor([0, 21, 22, 60])}
    kernel, eagerly = (torch.autograd.grad(loss_of(x, name, **options), x.tensors) for name in ("tvm", "eager"))
    for name, one, other in zip(NAMES, kernel, eagerly, strict=True):
        assert_close(one, other, 2e-5, name)


@pytest.mark.parametrize(
    ("implementation", "chunk_size", "kept_states", "link", "step_size"),
    [("tvm", 20, 2, "ln_silu", "head"), ("tvm", 1, 1, "identity", "token"), ("eager", 20, 0, "ln_silu", "head")],
)
def test_only_inputs_and_states_at_starts_of_chunks_are_kept(
    implementation: str, chunk_size: int, kept_states: int, link: str, step_size: str
) -> None:
    """21 tokens: two chunks of 20, or one stretch of 64 of the chunks of one token."""
    x = leaves_of(step_size=step_size)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not any(tensor is leaf for leaf in x.tensors):
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        options = {"chunk_size": chunk_size, "link": link, "phi_eps": 1e-2, "implementation": implementation}
        y, _ = trellis_attention(*x.args, **options, initial_state=x.initial_state)
    assert y.requires_grad
    assert sum(kept.values()) == kept_states * sum(s.numel() for s in x.initial_state)


@pytest.mark.parametrize("chunk_size", [2, 300])
def test_the_kernel_and_the_eager_reverse_pass_agree_on_unusual_chunks(chunk_size: int) -> None:
    x = leaves_of()
    options = {"chunk_size": chunk_size}
    kernel, eagerly = (torch.autograd.grad(loss_of(x, name, **options), x.tensors) for name in ("tvm", "eager"))
    for name, one, other in zip(NAMES, kernel, eagerly, strict=True):
        assert_close(one, other, 2e-5, name)


@pytest.mark.parametrize("implementation", ["eager", "tvm"])
@pytest.mark.parametrize("with_state", [False, True])
def test_opcheck_of_the_operator_that_keeps_states(implementation: str, with_state: bool) -> None:
    x = leaves_of()
    state = x.initial_state if with_state else (None, None)
    settings = ("ln_silu", "ln_silu", "identity", 1e-2, 20, "bilevel", implementation)
    opcheck(torch.ops.trellis_ops.attention_kept.default, (*x.args, *state, None, *settings))


def test_an_unknown_outer_gradient_is_refused() -> None:
    x = make_inputs()
    with pytest.raises(ValueError, match="outer_gradient='second'"):
        backward.attention(*x.args, x.v, x.initial_state, rule=Rule(), chunk_size=4, outer_gradient="second")
