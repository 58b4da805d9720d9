"""The eager implementation against the oracle."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from codegen.rule import MAPS, Rule
from tests.support.inputs import Inputs, make_inputs
from tests.support.relative_error import TOLERANCE, assert_close
from trellis_ops import reference
from trellis_ops.eager import forward as eager
from trellis_ops.tokens import Tokens

# batch, tokens, heads, dim_k, dim_v, slots
SHAPES = [(2, 13, 3, 8, 8, 8), (1, 1, 1, 5, 7, 3), (1, 67, 2, 12, 5, 9), (1, 21, 2, 4, 4, 1), (2, 9, 1, 1, 6, 5)]
NAMES = (*Tokens._fields, "S_k", "S_v")


def check_against_oracle(x: Inputs, rule: Rule, chunk_size: int, tolerance: float, **options: Any) -> None:
    options |= {"rule": rule, "chunk_size": chunk_size, "initial_state": x.initial_state}
    y, states = eager.attention(*x.args, **options)
    expected, expected_states = reference.attention(*x.args, **options)
    state_dtype = torch.float64 if x.q.dtype == torch.float64 else torch.float32
    assert y.dtype == x.q.dtype
    assert states[0].dtype == states[1].dtype == state_dtype
    assert y.is_contiguous()
    assert_close(y, expected, tolerance, "y")
    # States are never rounded to the type of the inputs.
    assert_close(states[0], expected_states[0], min(tolerance, 1e-5), "S_k")
    assert_close(states[1], expected_states[1], min(tolerance, 1e-5), "S_v")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("chunk_size", [1, 4, 16, 100])
@pytest.mark.parametrize("phi", MAPS)
def test_forward(phi: str, chunk_size: int, shape: tuple[int, ...]) -> None:
    check_against_oracle(make_inputs(*shape, dtype=torch.float64), Rule(phi=phi), chunk_size, 1e-11)


@pytest.mark.parametrize(("link", "out"), list(itertools.product(MAPS, MAPS)))
def test_readout_maps(link: str, out: str) -> None:
    x = make_inputs(1, 10, 2, 6, 5, 7, dtype=torch.float64)
    check_against_oracle(x, Rule(phi="silu", link=link, out=out), 4, 1e-11)


@pytest.mark.parametrize("state", ["zero", None])
@pytest.mark.parametrize("phi", MAPS)
def test_zero_first_state(phi: str, state: str | None) -> None:
    x = make_inputs(1, 11, 2, 6, 6, 4, dtype=torch.float64, state=state)
    check_against_oracle(x, Rule(phi=phi), 4, 1e-8)


@pytest.mark.parametrize("phi_eps", [1e-6, 1e-2])
@pytest.mark.parametrize("step_size", ["head", "token"])
def test_step_sizes_and_phi_eps(step_size: str, phi_eps: float) -> None:
    x = make_inputs(2, 10, 2, dtype=torch.float64, step_size=step_size)
    check_against_oracle(x, Rule(phi_eps=phi_eps, step_size=step_size), 4, 1e-11)


@pytest.mark.parametrize(("tokens", "chunk_size"), [(70, 1), (300, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_types(dtype: torch.dtype, tokens: int, chunk_size: int) -> None:
    x = make_inputs(1, tokens, 2, 33, 20, 17, dtype=dtype)
    check_against_oracle(x, Rule(), chunk_size, TOLERANCE[dtype])


@pytest.mark.parametrize("chunk_size", [1, 16, 64])
@pytest.mark.parametrize("log_decay", [-30.0, -float("inf"), 0.0])
def test_forgetting_everything_or_nothing(log_decay: float, chunk_size: int) -> None:
    x = make_inputs(1, 70, 2, 8, 8, 8, log_decay=log_decay)
    check_against_oracle(x, Rule(), chunk_size, 1e-5)


def test_memory_after_strong_forgetting_is_as_exact_as_before() -> None:
    """The summed log beta is near -900 when the last tokens come, between which almost nothing is forgotten."""
    x = make_inputs(1, 64, 2, 16, 16, 8, log_decay=-1e-3)
    x.log_decay[:, :30] = -30.0
    check_against_oracle(x, Rule(), 64, 1e-6)


@pytest.mark.parametrize("chunk_size", [1, 4])
def test_readouts_taken_in_several_segments(chunk_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(eager._SEGMENT_ELEMENTS, "cpu", 0)
    check_against_oracle(make_inputs(2, 42, 2, dtype=torch.float64), Rule(), chunk_size, 1e-11)


@pytest.mark.parametrize("chunk_size", [1, 4])
def test_packed_sequences(chunk_size: int) -> None:
    x = make_inputs(1, 40, 2, 6, 5, 4, dtype=torch.float64, sequences=7, step_size="token")
    offsets = torch.tensor([0, 3, 3, 10, 11, 24, 24, 40])
    check_against_oracle(x, Rule(), chunk_size, 1e-11, cu_seqlens=offsets)


def test_packed_gradients() -> None:
    x = make_inputs(1, 20, 2, 6, 5, 4, dtype=torch.float64, sequences=4)
    check_gradients(x, Rule(phi_eps=1e-2), 4, "bilevel", cu_seqlens=torch.tensor([0, 3, 3, 10, 20]))


@pytest.mark.parametrize("chunk_size", [1, 4])
def test_strides_do_not_matter(chunk_size: int) -> None:
    x = make_inputs(2, 10, 3, 6, 6, 4, dtype=torch.float64)
    strange = Inputs(
        q=x.q.transpose(1, 2).contiguous().transpose(1, 2),
        k=torch.cat([x.k, x.v], dim=-1)[..., :6],
        v=x.v.flip(1).contiguous().flip(1)[:, :, :1].expand(2, 10, 3, 6),
        target=x.target[:, :1].expand(2, 10, 3, 4),
        log_decay=x.log_decay.transpose(0, 1).contiguous().transpose(0, 1),
        step_size=x.step_size[:1].expand(3),
        initial_state=(x.initial_state[0].mT.contiguous().mT, x.initial_state[1][:1].expand(2, 3, 4, 6)),
    )
    assert not any(t.is_contiguous() for t in (strange.q, strange.k, strange.v, strange.target, *strange.initial_state))
    check_against_oracle(strange, Rule(), chunk_size, 1e-11)


def test_states_share_no_memory() -> None:
    x = make_inputs(1, 4, 2, 8, 8, 4)
    _, states = eager.attention(*x.args, rule=Rule(), chunk_size=4, initial_state=x.initial_state)
    storages = {s.untyped_storage().data_ptr() for s in (*states, *x.initial_state)}
    assert len(storages) == 4


def check_gradients(x: Inputs, rule: Rule, chunk_size: int, outer_gradient: str, **options: Any) -> None:
    x = x.leaves()
    options |= {"rule": rule, "chunk_size": chunk_size, "outer_gradient": outer_gradient}
    results = []
    for implementation in (eager, reference):
        y, states = implementation.attention(*x.args, initial_state=x.initial_state, **options)
        generator = torch.Generator().manual_seed(0)
        cotangents = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in (y, *states)]
        results.append(torch.autograd.grad((y, *states), x.tensors, cotangents))
    for name, actual, expected in zip(NAMES, *results, strict=False):
        assert_close(actual, expected, 1e-9, name)


@pytest.mark.parametrize("outer_gradient", ["bilevel", "first_order"])
@pytest.mark.parametrize("chunk_size", [1, 5])
@pytest.mark.parametrize("phi", MAPS)
def test_gradients(phi: str, chunk_size: int, outer_gradient: str) -> None:
    x = make_inputs(2, 12, 2, 6, 5, 7, dtype=torch.float64)
    check_gradients(x, Rule(phi=phi, link="softmax", out="silu"), chunk_size, outer_gradient)


@pytest.mark.parametrize("name", MAPS)
def test_gradients_of_readout_maps(name: str) -> None:
    x = make_inputs(1, 9, 2, 6, 6, 7, dtype=torch.float64, step_size="token")
    check_gradients(x, Rule(phi="silu", link=name, out=name, step_size="token"), 4, "bilevel")


@pytest.mark.parametrize("shape", [(1, 1, 1, 3, 3, 1), (1, 6, 2, 1, 4, 2)])
def test_gradients_of_small_shapes(shape: tuple[int, ...]) -> None:
    check_gradients(make_inputs(*shape, dtype=torch.float64), Rule(), 4, "bilevel")


@pytest.mark.parametrize("outer_gradient", ["bilevel", "first_order"])
@pytest.mark.parametrize("log_decay", [-30.0, -float("inf")])
def test_gradients_under_strong_forgetting(log_decay: float, outer_gradient: str) -> None:
    x = make_inputs(1, 48, 2, 6, 6, 7, dtype=torch.float64, log_decay=log_decay)
    check_gradients(x, Rule(), 16, outer_gradient)


@pytest.mark.parametrize("phi", MAPS)
def test_gradients_from_a_zero_state(phi: str) -> None:
    x = make_inputs(1, 9, 2, 6, 6, 7, dtype=torch.float64, state="zero")
    check_gradients(x, Rule(phi=phi, phi_eps=1e-2), 4, "bilevel")


@pytest.mark.parametrize("phi", MAPS)
def test_inner_gradient_of_small_values(phi: str) -> None:
    """Between 0 and the norm at which l2_silu changes its divisor."""
    rule = Rule(phi=phi)
    for scale in (0.0, 1e-9, 1e-7, 1e-6, 1e-3):
        x = make_inputs(1, 5, slots=6, dtype=torch.float64)
        z = x.initial_state[0][..., 0] * scale
        target = x.target[:, 0]
        u = eager.inner_gradient(phi, z, target, rule.phi_eps)
        assert_close(u, reference.inner_gradient(z, target, rule), 1e-11, f"scale {scale}")


@pytest.mark.parametrize("chunk_size", [1, 4, 100])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_update_and_readout(dtype: torch.dtype, chunk_size: int) -> None:
    x = make_inputs(2, 11, 3, 6, 6, 5, dtype=dtype)
    gates = x.args[4:]
    options = {"rule": Rule(), "chunk_size": chunk_size, "initial_state": x.initial_state[0]}
    tolerance = min(TOLERANCE[dtype], 1e-5)
    expected = reference.update(x.k, x.target, *gates, **options)
    results = eager.update(x.k, x.target, *gates, **options)
    for name, actual, wanted in zip(("chunk_states", "codes", "final_state"), results, expected, strict=True):
        assert actual.is_contiguous()
        assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert_close(actual, wanted, tolerance, name)
    starts, codes, _ = results
    for transpose, read in ((False, x.q), (True, x.target)):
        options = {"chunk_size": chunk_size, "transpose": transpose}
        o = eager.readout(read, x.k, starts, codes, *gates, **options)
        assert o.dtype == dtype
        assert_close(o, reference.readout(read, x.k, starts, codes, *gates, **options), TOLERANCE[dtype])


def test_update_from_no_state() -> None:
    x = make_inputs(tokens=5, dtype=torch.float64)
    options = {"rule": Rule(phi_eps=1e-2), "chunk_size": 2}
    expected = reference.update(x.v, *x.args[3:], **options)
    for actual, wanted in zip(eager.update(x.v, *x.args[3:], **options), expected, strict=True):
        assert_close(actual, wanted, 1e-11)


@pytest.mark.parametrize("kept", [False, True], ids=["exact", "chunk-start"])
@pytest.mark.parametrize("step_size", ["head", "token"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_step_updates_in_place(dtype: torch.dtype, step_size: str, kept: bool) -> None:
    x = make_inputs(2, 1, 3, 6, 5, 7, dtype=dtype, step_size=step_size)
    start = make_inputs(2, 1, 3, 6, 5, 7, dtype=dtype, seed=1).initial_state if kept else None
    # Every other row of a wider state: the step must write through the strides it is given.
    wide = [torch.stack([s, s], dim=-2).flatten(-3, -2) for s in x.initial_state]
    state = (wide[0][..., ::2, :], wide[1][..., ::2, :])
    y = eager.step(*x.token(0), state, rule=Rule(), gradient_state=start)
    expected, states = reference.step(*x.token(0), x.initial_state, rule=Rule(), gradient_state=start)
    assert y.dtype == dtype
    assert_close(y, expected, TOLERANCE[dtype])
    for after, wanted, before, whole in zip(state, states, x.initial_state, wide, strict=True):
        assert_close(after, wanted, min(TOLERANCE[dtype], 1e-5))
        assert torch.equal(whole[..., 1::2, :], before)


def test_a_step_takes_no_gradient() -> None:
    x = make_inputs(tokens=1)
    leaf = x.q.requires_grad_()
    y = eager.step(*x.token(0), x.initial_state, rule=Rule())
    assert leaf.requires_grad and not y.requires_grad


@pytest.mark.parametrize(("chunk_size", "tokens"), [(1, 2), (4, 10)])
def test_compiles_into_one_graph(chunk_size: int, tokens: int) -> None:
    x = make_inputs(1, tokens, 2, 6, 5, 4, dtype=torch.float64).leaves()

    def loss(*tensors: Tensor) -> Tensor:
        *tokens, s_k, s_v = tensors
        y, (s_k, s_v) = eager.attention(
            *tokens, rule=Rule(phi_eps=1e-2), chunk_size=chunk_size, initial_state=(s_k, s_v)
        )
        return y.square().sum() + s_k.sum() + s_v.sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=False, backend="aot_eager")
    actual = torch.autograd.grad(compiled(*x.tensors), x.tensors)
    for name, a, e in zip(NAMES, actual, torch.autograd.grad(loss(*x.tensors), x.tensors), strict=True):
        assert_close(a, e, 1e-10, name)


def test_a_step_compiles_into_one_graph() -> None:
    x = make_inputs(1, 1, dtype=torch.float64)
    after = tuple(s.clone() for s in x.initial_state)
    compiled = torch.compile(eager.step, fullgraph=True, dynamic=False, backend="aot_eager")
    y = compiled(*x.token(0), after, rule=Rule())
    expected, states = reference.step(*x.token(0), x.initial_state, rule=Rule())
    assert_close(y, expected, 1e-11)
    assert_close(after[0], states[0], 1e-11)
    assert_close(after[1], states[1], 1e-11)


def test_an_unknown_outer_gradient_is_refused() -> None:
    with pytest.raises(ValueError, match="outer_gradient='second'"):
        eager.attention(*make_inputs().args, rule=Rule(), chunk_size=4, outer_gradient="second")
