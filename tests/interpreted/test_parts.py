"""memory_update, memory_readout and trellis_step by their Triton kernels, against the oracle in float64."""

from __future__ import annotations

import pytest

from codegen.device import cpu
from codegen.kernels.build import build
from codegen.kernels.operator import CompiledOperator
from codegen.rule import MAPS, Rule
from codegen.schedules.schedule import VARIANTS
from codegen.schedules.triton import TritonSchedule
from codegen.spec import Spec
from tests.support.cases.kernels import Build, Case, check_readout, check_step, check_update

TILES = pytest.mark.parametrize(("chunk", "tile"), [(16, 16), (20, 16), (20, 32), (64, 16)])


def triton(tile: int = 16) -> Build:
    def with_schedule(spec: Spec) -> CompiledOperator:
        (variant,) = VARIANTS[spec.problem.operator]
        precision = "ieee" if variant == "recurrent" else "tf32x3"
        return build(spec, TritonSchedule(variant, tile, num_warps=4, num_stages=1, dot_precision=precision), cpu())

    return with_schedule


@TILES
@pytest.mark.parametrize("phi", MAPS)
def test_update(phi, chunk, tile):
    check_update(triton(tile), Case("memory_update", chunk, (47, 47), dim_v=20, rule=Rule(phi, phi_eps=1e-2)))


@pytest.mark.parametrize("operator", ["memory_readout", "memory_readout_transposed"])
@pytest.mark.parametrize("step_size", ["head", "token"])
@TILES
def test_readout(chunk, tile, step_size, operator):
    rule = Rule(phi_eps=1e-2, step_size=step_size)
    check_readout(triton(tile), Case(operator, chunk, (47, 47), dim_v=20, rule=rule))


@pytest.mark.parametrize("operator", ["trellis_step", "trellis_step_chunked"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("phi", MAPS)
def test_step(phi, dtype, operator):
    check_step(triton(), Case(operator, lengths=(1, 1), dtype=dtype, rule=Rule(phi, phi_eps=1e-2)))
