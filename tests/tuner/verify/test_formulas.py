"""The oracle's own reading of a map's text, against formulas written by hand in PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from codegen.errors import MapTextError
from codegen.maps import Map, find
from codegen.rule import Rule
from tests.support.relative_error import assert_close
from tests.support.user_maps import CUBIC, HUBER, MAPS, WRITES
from trellis_ops import reference
from tuner.verify.formulas import define_maps_of

EPS = 1e-2

BY_HAND = {each.name: reference._LOSSES[each.name] if each.is_loss else reference._MAPS[each.name] for each in WRITES}


def renamed(made: Map) -> str:
    """The definition of `made` under a name that no formula by hand has."""
    return str(made).replace(made.name, f"read_{made.name}", 1)


def rows() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(5, 7, generator=generator, dtype=torch.float64) for _ in range(2))


def with_derivatives(formula: Callable[[Tensor], Tensor], z: Tensor) -> list[Tensor]:
    """Its value, a gradient of it, and the gradient of a sum of that one."""
    z = z.clone().requires_grad_()
    value = formula(z)
    weights = torch.linspace(0.5, 1.5, value.numel(), dtype=torch.float64).view(value.shape)
    (first,) = torch.autograd.grad((value * weights).sum(), z, create_graph=True)
    (second,) = torch.autograd.grad((first * torch.arange(7.0)).sum(), z)
    return [value.detach(), first.detach(), second]


def assert_same(one: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor], z: Tensor) -> None:
    for given, right in zip(with_derivatives(one, z), with_derivatives(other, z), strict=True):
        assert_close(given, right, 1e-12)


@pytest.mark.parametrize("made", MAPS, ids=["gelu_tanh", "rms_silu"])
def test_maps(made: Map) -> None:
    definition = renamed(made)
    define_maps_of(Rule(definition))
    assert_same(lambda z: reference.apply_map(definition, z, EPS), lambda z: BY_HAND[made.name](z, EPS), rows()[0])


@pytest.mark.parametrize("made", [HUBER, CUBIC], ids=["huber", "cubic_smooth"])
def test_losses(made: Map) -> None:
    rule = Rule(renamed(made), phi_eps=EPS)
    define_maps_of(rule)
    z, target = rows()
    z[0, 0] = target[0, 0] + 1.0
    assert_same(
        lambda z: reference._inner_loss(z, target, rule),
        lambda z: BY_HAND[made.name](z, target, EPS).sum(),
        z,
    )


def test_a_text_with_every_function() -> None:
    definition = (
        "every(z) = exp(z) + log(1 + z ** 2) - sigmoid(z) * silu(z) + tanh(z) / (3 + abs(z)) + z * sign(z) ** 3"
        " + max(z, 0.25) ** 2 + min(z, 0.5) ** 2 + z ** 2 * max(z, tanh(z)) + z * min(z, tanh(z))"
        " + where(z > 0.1, z ** (1 / 3), -z) + z * max(z) + sum(z ** 2) * z / N + z * (z ** 2 + eps) ** -0.5"
    )

    def by_hand(z: Tensor) -> Tensor:
        return (
            z.exp()
            + torch.log1p(z**2)
            - torch.sigmoid(z) * F.silu(z)
            + z.tanh() / (3 + z.abs())
            + z * z.sign()
            + F.relu(z - 0.25) ** 2
            + 2 * 0.25 * F.relu(z - 0.25)
            + 0.25**2
            + (0.5 - F.relu(0.5 - z)) ** 2
            + z**2 * torch.maximum(z, z.tanh())
            + z * torch.minimum(z, z.tanh())
            + torch.where(z > 0.1, z.clamp(min=0.05).pow(1 / 3), -z)
            + z * z.max(dim=-1, keepdim=True).values
            + (z**2).mean(dim=-1, keepdim=True) * z
            + z / torch.sqrt(z**2 + EPS)
        )

    written = str(find(definition))
    define_maps_of(Rule(written))
    assert_same(lambda z: reference.apply_map(written, z, EPS), by_hand, rows()[0])


def test_kinks_and_what_is_not_chosen() -> None:
    """max(z, 0) passes nothing at 0; a logarithm, a root or a quotient that is not chosen spoils no gradient."""
    z = torch.tensor([[0.0, -1.0, 2.0]], dtype=torch.float64).requires_grad_()
    texts = {
        "kink(z) = max(z, 0)": [0.0, 0.0, 1.0],
        "logged(z) = where(z > 0, log(z), z)": [1.0, 1.0, 0.5],
        "rooted(z) = where(z > 0, z ** 0.5, z)": [1.0, 1.0, 0.5 * 2**-0.5],
        "divided(z) = where(z > 0, 1 / z, z)": [1.0, 1.0, -0.25],
        "grown(z) = where(z < 1, z, exp(1000 * z) * 0)": [1.0, 1.0, 0.0],
        "stepped(z) = where(z > 0, 1, -1)": [0.0, 0.0, 0.0],
    }
    for definition, right in texts.items():
        written = str(find(definition))
        define_maps_of(Rule(written))
        (gradient,) = torch.autograd.grad(reference.apply_map(written, z).sum(), z)
        assert gradient.tolist() == [pytest.approx(right)], definition


def test_a_formula_by_hand_is_kept_and_two_texts_of_one_name_are_two_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    z = rows()[0]
    one, other = (str(find(f"twice_named(z) = {number} * z")) for number in (2, 3))
    define_maps_of(Rule(one, link=other))
    assert torch.equal(reference.apply_map(one, z), 2 * z)
    assert torch.equal(reference.apply_map(other, z), 3 * z)
    monkeypatch.setitem(reference._MAPS, "twice_named", lambda z, epsilon: 5 * z)
    define_maps_of(Rule(one))
    assert torch.equal(reference.apply_map(one, z), 5 * z)


def test_what_is_no_text_of_a_map_is_refused() -> None:
    for body in ("z.real", "z ** z", "sinh(z)", "where(z, z, 0)", "__import__('os')", "True * z"):
        rule = Rule()
        object.__setattr__(rule, "phi", f"refused(z) = {body}")
        define_maps_of(rule)
        with pytest.raises(MapTextError, match="oracle"):
            reference.apply_map(rule.phi, rows()[0])
