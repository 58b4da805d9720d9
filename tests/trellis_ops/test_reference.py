"""The oracle against numbers worked out by hand and against recurrences written without it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from codegen.rule import MAPS, Rule
from tests.support.inputs import Inputs, make_inputs
from tests.support.relative_error import assert_close
from trellis_ops import reference

IDENTITY = Rule(phi="identity", link="identity", out="identity")


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def scalar_inputs(q: list[float], k: list[float], v: list[float], target: list[float], beta: list[float]) -> Inputs:
    """One head, one slot, one dimension; S_k = 2, S_v = -1, gamma = 0.1."""
    shaped = [tensor(*x).view(1, -1, 1, 1) for x in (q, k, v, target)]
    states = (torch.full((1, 1, 1, 1), 2.0, dtype=torch.float64), torch.full((1, 1, 1, 1), -1.0, dtype=torch.float64))
    return Inputs(*shaped, tensor(*beta).log().view(1, -1, 1), tensor(0.1), states)


def test_one_token_by_hand() -> None:
    x = scalar_inputs(q=[2.0], k=[3.0], v=[4.0], target=[1.0], beta=[0.5])
    y, (s_k, s_v) = reference.attention(*x.args, rule=IDENTITY, chunk_size=1, initial_state=x.initial_state)
    # u_k = 2 * 3 - 1 = 5 and S_k = 0.5 * 2 - 0.1 * 5 * 3; u_v = -1 * 4 - 1 = -5 and S_v = 0.5 * -1 + 0.1 * 5 * 4.
    assert s_k.item() == pytest.approx(-0.5, abs=1e-14)
    assert s_v.item() == pytest.approx(1.5, abs=1e-14)
    assert y.item() == pytest.approx(1.5 * (-0.5 * 2.0), abs=1e-14)


@pytest.mark.parametrize(
    ("chunk_size", "expected"),
    # Second token, S_k = -0.5 after the first: z = -0.5 * 1 at C = 1, but 2 * 1 at C = 2; u = z - 3.
    [(1, 0.8 * -0.5 - 0.1 * (-0.5 - 3.0)), (2, 0.8 * -0.5 - 0.1 * (2.0 - 3.0))],
)
def test_the_gradient_is_taken_at_the_start_of_the_chunk(chunk_size: int, expected: float) -> None:
    x = scalar_inputs(q=[2.0, 1.0], k=[3.0, 1.0], v=[4.0, 1.0], target=[1.0, 3.0], beta=[0.5, 0.8])
    _, (s_k, _) = reference.attention(*x.args, rule=IDENTITY, chunk_size=chunk_size, initial_state=x.initial_state)
    assert s_k.item() == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize(
    ("name", "x", "expected"),
    [
        ("identity", (1.0, -2.0), (1.0, -2.0)),
        ("silu", (0.0, math.log(3.0)), (0.0, 0.75 * math.log(3.0))),
        # silu(x) is 0 and a: mean a / 2, variance a^2 / 4.
        (
            "ln_silu",
            (0.0, math.log(3.0)),
            tuple(
                s / math.sqrt((0.375 * math.log(3.0)) ** 2 + 1e-6) for s in (-0.375 * math.log(3), 0.375 * math.log(3))
            ),
        ),
        ("l2_silu", (0.0, 5.0), (0.0, 1.0)),
        ("l2_silu", (0.0, 0.0), (0.0, 0.0)),
        ("softmax", (0.0, math.log(3.0)), (0.25, 0.75)),
        ("softmax", (1000.0, 1000.0), (0.5, 0.5)),
    ],
)
def test_maps_by_hand(name: str, x: tuple[float, ...], expected: tuple[float, ...]) -> None:
    torch.testing.assert_close(reference.apply_map(name, tensor(*x)), tensor(*expected), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Rule(phi="identity"), (-3.0, -1.0)),
        (Rule(phi="silu"), (-1.5, -0.5)),
        # e = -alpha with its mean taken off, through silu'(0) = 1 / 2 and 1 / sqrt(eps).
        (Rule(phi="ln_silu", phi_eps=1e-6), (-500.0, 500.0)),
        (Rule(phi="ln_silu", phi_eps=1e-2), (-5.0, 5.0)),
        (Rule(phi="l2_silu"), (-1.5e6, -0.5e6)),
        # p = (1/2, 1/2), e = (-5/2, -1/2), <e, p> = -3/2.
        (Rule(phi="softmax"), (-0.5, 0.5)),
    ],
)
def test_inner_gradient_at_zero_by_hand(rule: Rule, expected: tuple[float, ...]) -> None:
    u = reference.inner_gradient(tensor(0.0, 0.0), tensor(3.0, 1.0), rule)
    torch.testing.assert_close(u, tensor(*expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("phi", MAPS)
def test_inner_gradient_is_the_slope_of_the_inner_loss(phi: str) -> None:
    rule = Rule(phi=phi, phi_eps=1e-3)
    x = make_inputs(tokens=1, heads=1, slots=7, dtype=torch.float64)
    z, target = x.initial_state[0][0, 0, :, 0], x.target[0, 0, 0]

    def loss(at: Tensor) -> Tensor:
        return 0.5 * ((reference.apply_map(phi, at, rule.phi_eps) - target) ** 2).sum()

    h = 1e-6
    slopes = [(loss(z + h * d) - loss(z - h * d)) / (2 * h) for d in torch.eye(7, dtype=torch.float64)]
    assert_close(reference.inner_gradient(z, target, rule), torch.stack(slopes), 1e-7)


@pytest.mark.parametrize("step_size", ["head", "token"])
def test_identity_is_the_gated_delta_rule(step_size: str) -> None:
    x = make_inputs(2, 9, 3, 5, 4, 6, dtype=torch.float64, step_size=step_size)
    y, states = reference.attention(
        *x.args, rule=Rule(phi="identity", link="softmax"), chunk_size=1, initial_state=x.initial_state
    )
    for b in range(2):
        for h in range(3):
            s_k, s_v = (s[b, h].clone() for s in x.initial_state)
            for t in range(9):
                target, beta = x.target[b, t, h], math.exp(x.log_decay[b, t, h])
                gamma = x.step_size[h] if step_size == "head" else x.step_size[b, t, h]
                s_k = beta * s_k - gamma * torch.outer(s_k @ x.k[b, t, h] - target, x.k[b, t, h])
                s_v = beta * s_v - gamma * torch.outer(s_v @ x.v[b, t, h] - target, x.v[b, t, h])
                assert_close(y[b, t, h], torch.softmax(s_k @ x.q[b, t, h], 0) @ s_v, 1e-12)
            assert_close(states[0][b, h], s_k, 1e-12)
            assert_close(states[1][b, h], s_v, 1e-12)


def test_silu_in_chunks_against_a_loop_with_the_derivative_written_out() -> None:
    x = make_inputs(1, 8, 1, 4, 5, 3, dtype=torch.float64)
    codes = reference.update(x.k, *x.args[3:], rule=Rule(phi="silu"), chunk_size=3, initial_state=x.initial_state[0])[1]
    state = start = x.initial_state[0][0, 0]
    for t in range(8):
        start = state if t % 3 == 0 else start
        z = start @ x.k[0, t, 0]
        sigma = 1 / (1 + torch.exp(-z))
        u = (sigma + z * sigma * (1 - sigma)) * (z * sigma - x.target[0, t, 0])
        assert_close(codes[0, t, 0], u, 1e-12)
        state = torch.exp(x.log_decay[0, t, 0]) * state - x.step_size[0] * torch.outer(u, x.k[0, t, 0])


@pytest.mark.parametrize("phi", MAPS)
def test_bilevel_gradients_are_the_slopes_of_the_forward(phi: str) -> None:
    rule = Rule(phi=phi, phi_eps=1e-2)
    x = make_inputs(1, 5, 1, 3, 2, 3, dtype=torch.float64).leaves()

    def forward(*tensors: Tensor) -> tuple[Tensor, ...]:
        *tokens, s_k, s_v = tensors
        y, states = reference.attention(*tokens, rule=rule, chunk_size=2, initial_state=(s_k, s_v))
        return y, *states

    assert torch.autograd.gradcheck(forward, x.tensors, eps=1e-6, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("phi", ["identity", "ln_silu"])
def test_first_order_gradients_hold_z_constant(phi: str) -> None:
    rule = Rule(phi=phi, phi_eps=1e-2)
    x = make_inputs(1, 5, 1, 3, 2, 3, dtype=torch.float64).leaves()
    weight = make_inputs(1, 5, 1, 3, 2, 3, dtype=torch.float64, seed=1).v
    options = {"rule": rule, "chunk_size": 2, "initial_state": x.initial_state}

    def gradients(outer_gradient: str) -> tuple[Tensor, ...]:
        y, _ = reference.attention(*x.args, **options, outer_gradient=outer_gradient)
        return torch.autograd.grad((y * weight).sum(), x.tensors)

    frozen = []
    for w, s in ((x.k, x.initial_state[0]), (x.v, x.initial_state[1])):
        starts = reference.update(w, *x.args[3:], rule=rule, chunk_size=2, initial_state=s)[0].detach()
        frozen.append([starts[0, t // 2, 0] @ w[0, t, 0].detach() for t in range(5)])
    s_k, s_v = (s[0, 0] for s in x.initial_state)
    outputs = []
    for t in range(5):
        q, k, v, target = (a[0, t, 0] for a in x.args[:4])
        beta = x.log_decay[0, t, 0].exp()
        s_k = beta * s_k - x.step_size[0] * torch.outer(reference.inner_gradient(frozen[0][t], target, rule), k)
        s_v = beta * s_v - x.step_size[0] * torch.outer(reference.inner_gradient(frozen[1][t], target, rule), v)
        outputs.append(reference.apply_map("ln_silu", s_k @ q) @ s_v)
    expected = torch.autograd.grad((torch.stack(outputs) * weight[0, :, 0]).sum(), x.tensors)
    bilevel = gradients("bilevel")
    for name, first, hand, both in zip(
        ("q", "k", "v", "target", "log_decay", "step_size", "S_k", "S_v"),
        gradients("first_order"),
        expected,
        bilevel,
        strict=True,
    ):
        assert_close(first, hand, 1e-11, name)
        assert name == "q" or not torch.allclose(first, both, rtol=1e-3), f"{name}: z made no difference"


def test_gradients_are_finite_where_silu_is_zero() -> None:
    x = make_inputs(1, 4, 1, 3, 3, 3, dtype=torch.float64, state="zero").leaves()
    y, _ = reference.attention(
        *x.args, rule=Rule(phi="l2_silu", link="l2_silu"), chunk_size=2, initial_state=x.initial_state
    )
    for gradient in torch.autograd.grad(y.sum(), x.tensors):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("chunk_size", [1, 3, 16])
def test_update_and_readouts_compose_to_attention(chunk_size: int) -> None:
    rule = Rule(phi="softmax", link="l2_silu", out="silu")
    x = make_inputs(2, 7, 2, 5, 4, 3, dtype=torch.float64)
    gates = x.args[4:]
    options = {"rule": rule, "chunk_size": chunk_size}
    y, states = reference.attention(*x.args, **options, initial_state=x.initial_state)
    starts_k, codes_k, s_k = reference.update(x.k, x.target, *gates, **options, initial_state=x.initial_state[0])
    starts_v, codes_v, s_v = reference.update(x.v, x.target, *gates, **options, initial_state=x.initial_state[1])
    o = reference.readout(x.q, x.k, starts_k, codes_k, *gates, chunk_size=chunk_size)
    r = reference.apply_map("l2_silu", o)
    read = reference.readout(r, x.v, starts_v, codes_v, *gates, chunk_size=chunk_size, transpose=True)
    assert starts_k.shape == (2, -(-7 // chunk_size), 2, 3, 5)
    assert_close(reference.apply_map("silu", read), y, 1e-12)
    assert_close(s_k, states[0], 1e-12)
    assert_close(s_v, states[1], 1e-12)


def test_packed_sequences_may_be_empty() -> None:
    x = make_inputs(1, 5, 2, 4, 4, 3, dtype=torch.float64, sequences=3)
    y, states = reference.attention(
        *x.args, rule=Rule(), chunk_size=2, initial_state=x.initial_state, cu_seqlens=torch.tensor([0, 2, 2, 5])
    )
    assert y.shape == x.v.shape
    assert torch.equal(states[0][1], x.initial_state[0][1])
    last = make_inputs(1, 5, 2, 4, 4, 3, dtype=torch.float64, sequences=3).tokens(
        2, 5, (x.initial_state[0][2:], x.initial_state[1][2:])
    )
    alone, _ = reference.attention(*last.args, rule=Rule(), chunk_size=2, initial_state=last.initial_state)
    assert_close(y[:, 2:], alone, 1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_computes_in_the_type_it_is_told(dtype: torch.dtype) -> None:
    x = make_inputs(dtype=torch.bfloat16)
    y, states = reference.attention(*x.args, rule=Rule(), chunk_size=4, initial_state=x.initial_state, dtype=dtype)
    assert {y.dtype, states[0].dtype, states[1].dtype} == {dtype}
    assert not y.requires_grad


def test_a_step_is_pure() -> None:
    x = make_inputs(tokens=1, dtype=torch.float64)
    before = [s.clone() for s in x.initial_state]
    _, after = reference.step(*x.token(0), x.initial_state, rule=Rule())
    assert all(torch.equal(s, b) for s, b in zip(x.initial_state, before, strict=True))
    assert not torch.equal(after[0], before[0])


def test_an_unknown_outer_gradient_is_refused() -> None:
    with pytest.raises(ValueError, match=r"outer_gradient='second' .*bilevel, first_order"):
        reference.attention(*make_inputs().args, rule=Rule(), chunk_size=4, outer_gradient="second")
