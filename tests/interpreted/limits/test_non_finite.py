"""Triton's kernels where one head holds a number that is not finite."""

from __future__ import annotations

import dataclasses

import pytest

from codegen.device import cpu
from codegen.kernels.build import build
from codegen.kernels.operator import CompiledOperator
from codegen.rule import Rule
from codegen.schedules.registry import default, variants_of
from codegen.spec import Spec
from tests.support.cases import non_finite
from tests.support.cases.kernels import Build, Case
from tests.support.cases.non_finite import LENGTHS, batch, packed

# Products of what is not finite: that they are invalid is what is tested.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

# The norm of l2_silu has a floor, which NaN must pass.
RULE = Rule("l2_silu", link="l2_silu", out="l2_silu", phi_eps=1e-2, step_size="token")
SIZES = {"heads": 2, "dim_k": 5, "dim_v": 3, "slots": 6}
WHOLE = {"heads": 2, "dim_k": 16, "dim_v": 32, "slots": 16}
PADDING = pytest.mark.parametrize("sizes", [SIZES, WHOLE], ids=["padding", "no padding"])


def triton(**settings: object) -> Build:
    def with_schedule(spec: Spec) -> CompiledOperator:
        return build(spec, dataclasses.replace(default("triton", spec, cpu()), **settings), cpu())

    return with_schedule


@pytest.mark.parametrize(
    ("variant", "sizes", "names"),
    [("fused", SIZES, ("k", "log_decay")), ("fused", WHOLE, ("k",)), ("split", SIZES, ("log_decay",))],
)
def test_attention(variant, sizes, names):
    """Chunks of one tile and a shorter one."""
    case = packed(Case(chunk=20, rule=RULE, **sizes))
    non_finite.check_attention(triton(variant=variant, tile_rows=16), case, names)


def test_softmax():
    rule = dataclasses.replace(RULE, phi="softmax", link="softmax", out="softmax")
    non_finite.check_attention(triton(variant="fused"), packed(Case(chunk=16, rule=rule, **SIZES)), ("k",))


@PADDING
@pytest.mark.parametrize("operator", ["memory_update", "memory_readout", "memory_readout_transposed"])
def test_parts(operator, sizes):
    case = batch(Case(operator, chunk=24, rule=RULE, **sizes | {"dim_v": sizes["dim_k"]}))
    check = non_finite.check_update if operator == "memory_update" else non_finite.check_readout
    check(triton(), case, ("log_decay",))


@PADDING
@pytest.mark.parametrize("operator", ["trellis_step", "trellis_step_chunked"])
def test_step(operator, sizes):
    case = Case(operator, lengths=(1,) * len(LENGTHS), rule=RULE, **sizes)
    non_finite.check_step(triton(), case, ("k", "log_decay", "S_v"))


@PADDING
@pytest.mark.parametrize("variant", variants_of("trellis_attention", "triton", "backward"))
def test_backward(variant, sizes):
    case = packed(Case(chunk=16, rule=RULE, **sizes))
    build = triton(variant=variant, checkpoint_spacing=1)
    outer_gradient = "first_order" if variant == "backward" else "bilevel"
    names = ("v", "dy") if sizes is SIZES else ("v",)
    non_finite.check_backward(build, case, outer_gradient, names)
