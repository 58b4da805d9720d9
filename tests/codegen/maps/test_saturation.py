"""Where one slot has all of the weight, what is left of u and of its cotangents is small, and right in float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from codegen import maps
from codegen.maps.emit import pytorch as emit_torch
from codegen.maps.registry import MAPS, Map
from tests.support.relative_error import assert_close

SATURATING = {
    "softmax": MAPS["softmax"],
    "softmax_of_silu": maps.registry.unnamed("softmax_of_silu", maps.softmax(maps.silu(maps.registry._Z))),
}


def arguments(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """z with one number about 60 above all others, a target and a cotangent."""
    generator = torch.Generator().manual_seed(0)
    z, target, cotangent = (torch.randn(60, 16, generator=generator) for _ in range(3))
    z[torch.arange(60), torch.arange(60) % 16] = 60.0
    return z.to(dtype), target.to(dtype), cotangent.to(dtype)


def results(of: Map, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """u, and the cotangents of z and of the target."""
    z, target, cotangent = arguments(dtype)
    made = emit_torch.functions(of)
    parts = made["prepare_write"](z, target, 1e-6)
    return (made["write_gradient"](z, target, 1e-6), *made["push_write"](parts, cotangent, 1e-6))


@pytest.mark.parametrize("name", SATURATING)
def test_u_and_its_cotangents(name: str) -> None:
    exact, rounded = (results(SATURATING[name], dtype) for dtype in (torch.float64, torch.float32))
    for of, right, given in zip(("u", "dz", "da"), exact, rounded, strict=True):
        assert_close(given, right, 1e-5, of)
