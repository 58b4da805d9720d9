"""First and second derivatives of the maps against autograd of the oracle."""

from __future__ import annotations

import pytest
import torch

from codegen.rule import MAPS, Rule
from tests.support.relative_error import assert_close
from trellis_ops import reference
from trellis_ops.eager.maps import prepare_write, pull_back, push_write

SCALES = pytest.mark.parametrize("scale", [3.0, 1e-3, 1e-7, 0.0])
"""Of the argument; l2_silu changes its divisor at a norm of 1e-6."""


def arguments(scale: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    z, target, cotangent = (torch.randn(3, 5, 7, generator=generator, dtype=torch.float64) for _ in range(3))
    return (z * scale).requires_grad_(), target.requires_grad_(), cotangent


@SCALES
@pytest.mark.parametrize("phi_eps", [1e-6, 1e-2])
@pytest.mark.parametrize("phi", MAPS)
def test_writes(phi: str, phi_eps: float, scale: float) -> None:
    z, target, cotangent = arguments(scale)
    u = reference.inner_gradient(z, target, Rule(phi, phi_eps=phi_eps))
    expected_z, expected_target = torch.autograd.grad(u, (z, target), cotangent)
    parts = prepare_write(phi, z.detach(), target.detach(), phi_eps)
    dz, dtarget = push_write(phi, parts, cotangent, phi_eps)
    assert_close(dz, expected_z, 1e-13, "z")
    assert_close(dtarget, expected_target, 1e-13, "target")


@SCALES
@pytest.mark.parametrize("name", MAPS)
def test_readouts(name: str, scale: float) -> None:
    x, _, cotangent = arguments(scale)
    (expected,) = torch.autograd.grad(reference.apply_map(name, x), x, cotangent)
    assert_close(pull_back(name, x.detach(), cotangent), expected, 1e-13)
