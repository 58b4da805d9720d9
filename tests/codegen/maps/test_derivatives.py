"""Values and derivatives of maps, those that come along and random ones, against autograd in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from codegen import maps
from codegen.maps.emit import pytorch as emit_torch
from codegen.maps.registry import Map

Pair = tuple[Any, Callable[[Tensor], Tensor]]
"""A map as an expression of z, and as plain PyTorch."""

PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
"""Not the shrinking of an example, which takes minutes: they are small."""

Z = maps.registry._Z

FUNCTIONS: dict[str, tuple[Callable[[Any], Any], Callable[[Tensor], Tensor]]] = {
    "sigmoid": (maps.sigmoid, torch.sigmoid),
    "silu": (maps.silu, torch.nn.functional.silu),
    "tanh": (maps.tanh, torch.tanh),
    "abs": (maps.abs, torch.abs),
    "relu": (maps.relu, torch.relu),
    "cap": (lambda x: maps.min(x, 0.7), lambda x: x.clamp_max(0.7)),
    "exp": (lambda x: maps.exp(-x * x), lambda x: torch.exp(-x * x)),
    "log": (lambda x: maps.log(1 + x**2), lambda x: torch.log(1 + x**2)),
    "sqrt": (lambda x: maps.sqrt(1 + x * x), lambda x: torch.sqrt(1 + x * x)),
    "power": (lambda x: (1 + x * x) ** 0.3, lambda x: (1 + x * x) ** 0.3),
    "quotient": (lambda x: x / (2 + maps.abs(x)), lambda x: x / (2 + x.abs())),
    "choice": (lambda x: maps.where(x > 0.2, x * x, 3 * x), lambda x: torch.where(x > 0.2, x * x, 3 * x)),
    "of_sum": (lambda x: x * maps.sum(x), lambda x: x * x.sum(-1, keepdim=True)),
    "centred": (lambda x: x - maps.mean(x), lambda x: x - x.mean(-1, keepdim=True)),
    "below": (lambda x: x - maps.max(x), lambda x: x - x.amax(-1, keepdim=True)),
    "rms": (
        lambda x: x * maps.rsqrt(maps.mean(x * x) + maps.eps),
        lambda x: x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-2),
    ),
    "layer_norm": (maps.layer_norm, lambda x: torch.nn.functional.layer_norm(x, x.shape[-1:], eps=1e-2)),
    "softmax": (maps.softmax, lambda x: torch.softmax(x, dim=-1)),
    "l2_norm": (
        maps.l2_norm,
        lambda x: x * torch.rsqrt((x * x).sum(-1, keepdim=True).clamp_min(1e-12)),
    ),
}
"""Of one row, each with what PyTorch says for it."""

numbers = st.sampled_from([-1.5, -1.0, 0.25, 0.5, 2.0, 3.0])


def combined(parts: st.SearchStrategy[Pair]) -> st.SearchStrategy[Pair]:
    def applied(name: str, part: Pair) -> Pair:
        function, plain = FUNCTIONS[name]
        return function(part[0]), lambda z: plain(part[1](z))

    def added(one: Pair, other: Pair, weight: float) -> Pair:
        return one[0] + weight * other[0], lambda z: one[1](z) + weight * other[1](z)

    def multiplied(one: Pair, other: Pair) -> Pair:
        return one[0] * other[0], lambda z: one[1](z) * other[1](z)

    return (
        st.builds(applied, st.sampled_from(sorted(FUNCTIONS)), parts)
        | st.builds(added, parts, parts, numbers)
        | st.builds(multiplied, parts, parts)
    )


formulas = st.recursive(st.just((Z, lambda z: z)), combined, max_leaves=4)


def arguments(scale: float) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z, a, cotangent = (torch.randn(3, 6, generator=generator, dtype=torch.float64) for _ in range(3))
    return (z * scale).requires_grad_(), a.requires_grad_(), cotangent


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, name: str) -> None:
    """Relative to what is expected, but of what is expected to be rounding errors nothing is."""
    error = (actual - expected.detach()).norm() / (expected.detach().norm() + 1e-3)
    assert error <= tolerance, f"{name}: relative error {error:.2e} is above {tolerance:.0e}"


def check(of: Map, loss: Callable[[Tensor, Tensor], Tensor], scale: float, tolerance: float) -> None:
    """u, and the cotangents of z and a, of a write with that loss."""
    functions = emit_torch.functions(of)
    z, a, cotangent = arguments(scale)
    (u,) = torch.autograd.grad(loss(z, a), z, create_graph=True)
    expected = torch.autograd.grad(u, (z, a), cotangent, allow_unused=True, materialize_grads=True)
    z, a = z.detach(), a.detach()
    assert_close(functions["write_gradient"](z, a, 1e-2) + 0 * z, u, tolerance, f"u of {of}")
    found = functions["push_write"](functions["prepare_write"](z, a, 1e-2), cotangent, 1e-2)
    for name, actual, wanted in zip(("z", "a"), found, expected, strict=True):
        assert_close(actual + 0 * z, wanted, tolerance, f"cotangent {name} of {of}")


@settings(max_examples=60, deadline=None, phases=PHASES)
@given(formulas, st.sampled_from([1.0, 0.1]))
def test_random_maps(formula: Pair, scale: float) -> None:
    expression, plain = formula
    assume(expression.row)
    z, _, cotangent = arguments(scale)
    y = plain(z)
    assume(bool((y.detach().abs() < 1e3).all()))
    of = Map("random", expression)
    functions = emit_torch.functions(of)
    assert_close(functions["value"](z.detach(), 1e-2), y, 1e-11, f"y of {of}")
    (expected,) = torch.autograd.grad(y, z, cotangent)
    assert_close(functions["pull_back"](z.detach(), cotangent, 1e-2) + 0 * z, expected, 1e-9, f"J^T cotangent of {of}")
    check(of, lambda z, a: 0.5 * ((plain(z) - a) ** 2).sum(), scale, 1e-9)


@settings(max_examples=25, deadline=None, phases=PHASES)
@given(formulas, st.sampled_from(["squares", "huber", "smooth"]))
def test_random_losses(formula: Pair, kind: str) -> None:
    expression, plain = formula
    a = maps.expression.input_row("a")
    losses: dict[str, tuple[Any, Callable[[Tensor], Tensor]]] = {
        "squares": (lambda d: maps.mean(d**2), lambda d: (d**2).mean(-1).sum()),
        "huber": (
            lambda d: maps.sum(maps.where(maps.abs(d) <= 1, 0.5 * d * d, maps.abs(d) - 0.5)),
            lambda d: torch.where(d.abs() <= 1, 0.5 * d * d, d.abs() - 0.5).sum(),
        ),
        "smooth": (lambda d: maps.sum((d * d + 0.1) ** 1.5), lambda d: ((d * d + 0.1) ** 1.5).sum()),
    }
    written, plainly = losses[kind]
    assume(bool((plain(arguments(1.0)[0]).detach().abs() < 1e3).all()))
    check(Map("random", written(expression - a), is_loss=True), lambda z, a: plainly(plain(z) - a), 1.0, 1e-9)


@pytest.mark.parametrize(
    ("formula", "plain"),
    [
        (maps.relu(Z), torch.relu),
        (maps.abs(Z), torch.abs),
        (Z * maps.relu(Z), lambda z: z * torch.relu(z)),
        (maps.softmax(maps.abs(Z)), lambda z: torch.softmax(z.abs(), dim=-1)),
        (Z - maps.max(Z), lambda z: z - z.amax(-1, keepdim=True)),
        (maps.max(Z, -Z), lambda z: torch.maximum(z, -z)),
    ],
)
def test_kinks_follow_autograd(formula: Any, plain: Callable[[Tensor], Tensor]) -> None:
    """At z = 0, where all of a row are equal, and both sides of every kink."""
    z = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    cotangent = arguments(1.0)[2][:2, :4]
    (expected,) = torch.autograd.grad(plain(z), z, cotangent)
    assert_close(
        emit_torch.functions(Map("kink", formula))["pull_back"](z.detach(), cotangent, 1e-2), expected, 1e-12, "z"
    )
