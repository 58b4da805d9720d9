"""The reverse of rules that are linear in their state, a tile at once on Triton, against autograd of the eager walk."""

from __future__ import annotations

from dataclasses import replace

import pytest

from codegen.device import cpu
from codegen.kernels.build import build
from codegen.kernels.operator import CompiledOperator
from codegen.schedules.legality import why_illegal
from codegen.schedules.triton import TritonSchedule
from codegen.spec import Spec
from tests.support.cases.recurrence import Build, Run, Strong, check_attention
from tests.support.linear_rules import RULES
from tests.trellis_ops.family.cases import Case

SCHEDULE = TritonSchedule("chunks_backward", 16, 4, 1, "tf32x3", checkpoint_spacing=16)
SERVED = ("linear", "fixed", "deltanet", "gated_deltanet", "comba")


def triton(tile: int = 16) -> Build:
    def with_schedule(spec: Spec) -> CompiledOperator:
        return build(spec, replace(SCHEDULE, tile_rows=tile, checkpoint_spacing=tile), cpu())

    return with_schedule


def small(name: str, tokens: int = 20) -> Case:
    """A tile and a shorter one; sizes that are no powers of two."""
    return Case(RULES[name], batch=1, tokens=tokens, heads=1, dim_k=12, dim_v=10, slots=6)


@pytest.mark.parametrize("name", SERVED)
def test_all_gradients_of_a_tile_and_a_shorter_one(name):
    check_attention(triton(), Run(small(name), direction="backward"))


def test_z_as_a_constant():
    check_attention(triton(), Run(small("comba"), direction="backward_first_order"))


def test_packed_sequences_of_which_one_is_empty_and_one_a_token():
    check_attention(
        triton(), Run(replace(small("comba", 38), heads=2), direction="backward", packed=(0, 36, 36, 37, 38))
    )


def test_a_longer_tile():
    check_attention(triton(32), Run(small("gated_deltanet", 35), direction="backward"))


def test_bfloat16():
    check_attention(triton(), Run(small("gated_deltanet"), direction="backward", dtype="bfloat16"))


@pytest.mark.parametrize("name", ["linear", "comba", "gated_deltanet"])
def test_strong_gates_forget_exactly(name):
    check_attention(triton(), Strong(small(name), direction="backward"))


def test_what_it_does_not_serve_is_refused():
    for name, rule in RULES.items():
        spec = Run(replace(small("linear"), rule=rule), direction="backward").spec()
        assert (why_illegal(spec, SCHEDULE, cpu()) is None) is (name in SERVED), name
    spec = Run(small("linear"), direction="backward").spec()
    assert "checkpoint_spacing must be 16" in str(why_illegal(spec, replace(SCHEDULE, checkpoint_spacing=32), cpu()))
