"""Results that are what large terms leave, right in float32: a saturated softmax, and slots that are nearly equal."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from codegen import maps
from codegen.maps.emit import pytorch as emit_torch
from codegen.maps.registry import MAPS, Map, unnamed
from tests.support.relative_error import assert_close

Z = maps.registry._Z

SATURATING = {
    "softmax": MAPS["softmax"],
    "softmax_of_silu": unnamed("softmax_of_silu", maps.softmax(maps.silu(Z))),
}
CENTRED = {
    "ln_silu": MAPS["ln_silu"],
    "layer_norm_of_tanh": unnamed("layer_norm_of_tanh", maps.layer_norm(maps.tanh(Z))),
}
EPS = 1e-6


def rows(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Standard normal z, target and cotangent."""
    generator = torch.Generator().manual_seed(0)
    z, target, cotangent = (torch.randn(60, 16, generator=generator).to(dtype) for _ in range(3))
    return z, target, cotangent


def results(of: Map, z: Tensor, target: Tensor, cotangent: Tensor) -> dict[str, Tensor]:
    """u, the cotangents of z and of the target, and what a readout pulls back."""
    made = emit_torch.functions(of)
    dz, da = made["push_write"](made["prepare_write"](z, target, EPS), cotangent, EPS)
    return {"u": made["write_gradient"](z, target, EPS), "dz": dz, "da": da, "J": made["pull_back"](z, cotangent, EPS)}


@pytest.mark.parametrize("name", SATURATING)
def test_one_slot_with_all_of_the_weight(name: str) -> None:
    def of(dtype: torch.dtype) -> dict[str, Tensor]:
        z, target, cotangent = rows(dtype)
        z[torch.arange(60), torch.arange(60) % 16] = 60.0
        return results(SATURATING[name], z, target, cotangent)

    exact, rounded = of(torch.float64), of(torch.float32)
    for each, right in exact.items():
        assert_close(rounded[each], right, 1e-5, each)


@pytest.mark.parametrize("name", CENTRED)
def test_the_sums_of_results_where_all_slots_are_nearly_equal(name: str) -> None:
    """Their sum is what a state whose slots are nearly equal gets, and far less than they are."""

    def of(dtype: torch.dtype) -> dict[str, Tensor]:
        z, target, cotangent = rows(torch.float32)
        z = z[:, :1] + 0.003 * z
        return results(CENTRED[name], z.to(dtype), target.to(dtype), cotangent.to(dtype))

    exact, rounded = of(torch.float64), of(torch.float32)
    for each, right in exact.items():
        off = (rounded[each].double().sum(-1) - right.sum(-1)).norm() / right.norm()
        assert off < 1e-6, f"{each}: the sum is off by {off:.1e} of the row"
