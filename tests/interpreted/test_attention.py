"""trellis_attention by its Triton kernels, against the oracle in float64."""

from __future__ import annotations

import dataclasses

import pytest

from codegen.device import cpu
from codegen.kernels.build import build
from codegen.kernels.operator import CompiledOperator
from codegen.rule import MAPS, Rule
from codegen.schedules.triton import TritonSchedule
from codegen.spec import Spec
from tests.support.cases.kernels import Build, Case, check_attention
from tests.support.operators import run_attention
from tests.support.relative_error import assert_close

VARIANTS = pytest.mark.parametrize("variant", ["fused", "split"])
ALL_VARIANTS = pytest.mark.parametrize("variant", ["fused", "split", "recurrent"])
SILU = Rule("silu", link="silu")


def triton(variant: str = "fused", tile: int = 16) -> Build:
    def with_schedule(spec: Spec) -> CompiledOperator:
        precision = "ieee" if variant == "recurrent" else "tf32x3"
        return build(spec, TritonSchedule(variant, tile, num_warps=4, num_stages=1, dot_precision=precision), cpu())

    return with_schedule


def chunk_of(variant: str) -> int:
    return 1 if variant == "recurrent" else 20


@VARIANTS
@pytest.mark.parametrize("phi", MAPS)
def test_every_write_map(phi, variant):
    check_attention(triton(variant), Case(rule=Rule(phi, phi_eps=1e-2)))


@VARIANTS
@pytest.mark.parametrize("name", MAPS)
def test_every_readout_map(name, variant):
    check_attention(triton(variant), Case(rule=Rule("identity", link=name, out=name)))


@pytest.mark.parametrize("phi", MAPS)
@pytest.mark.parametrize("step_size", ["head", "token"])
def test_recurrent(phi, step_size):
    rule = Rule(phi, phi_eps=1e-2, step_size=step_size)
    check_attention(triton("recurrent"), Case(chunk=1, lengths=(9, 9), rule=rule))


@VARIANTS
@pytest.mark.parametrize(
    ("chunk", "tile"),
    [(1, 16), (2, 16), (16, 16), (17, 16), (33, 16), (20, 32), (33, 32), (70, 32), (64, 64), (2**30, 16)],
)
def test_every_chunk_and_tile(variant, chunk, tile):
    check_attention(triton(variant, tile), Case(chunk=chunk, lengths=(7,) if chunk < 16 else (67,)))


@VARIANTS
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_inputs(variant, dtype):
    check_attention(triton(variant), Case(dtype=dtype))


@ALL_VARIANTS
def test_power_of_two_sizes_have_no_padding(variant):
    length, chunk, tile = (5, 1, 16) if variant == "recurrent" else (70, 64, 32)
    sizes = {"heads": 1, "dim_k": 64, "dim_v": 64, "slots": 64}
    check_attention(triton(variant, tile), Case(chunk=chunk, lengths=(length,), rule=Rule(), **sizes))


@VARIANTS
@pytest.mark.parametrize(("dim_k", "dim_v", "slots"), [(1, 1, 1), (3, 40, 2), (33, 5, 17)])
def test_sizes_far_from_powers_of_two(variant, dim_k, dim_v, slots):
    check_attention(triton(variant), Case(dim_k=dim_k, dim_v=dim_v, slots=slots, rule=SILU))


@VARIANTS
def test_step_size_per_token(variant):
    check_attention(triton(variant), Case(rule=Rule(phi_eps=1e-2, step_size="token")))


@ALL_VARIANTS
def test_packed_sequences(variant):
    lengths = (3, 0, 1, 5) if variant == "recurrent" else (41, 0, 1, 20, 5)
    check_attention(triton(variant), Case(chunk=chunk_of(variant), lengths=lengths, packed=True))


@ALL_VARIANTS
def test_forgetting_everything(variant):
    case = Case(chunk=chunk_of(variant), lengths=(9,) if variant == "recurrent" else (37, 37))
    inputs = case.inputs()
    inputs.log_decay[:, ::3] = float("-inf")
    inputs.log_decay[:, 1::3] = -40.0
    check_attention(triton(variant), case, inputs)


@VARIANTS
@pytest.mark.parametrize("log_decay", [0.0, -5.0])
def test_constant_gates(variant, log_decay):
    case = Case()
    check_attention(triton(variant), case, case.inputs(log_decay=log_decay))


# Codes of l2_silu at z = 0 are so large that exp(-z) in the sigmoid of the next chunk overflows to the right limit.
overflows = pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")


@overflows
@pytest.mark.parametrize("phi", MAPS)
def test_zero_state(phi):
    case = Case(rule=Rule(phi, phi_eps=1e-2))
    check_attention(triton(), case, case.inputs(state="zero"))


@overflows
def test_norm_below_its_floor():
    """l2_silu divides by 1e-6 there, and that constant has no derivative."""
    case = Case(rule=Rule("l2_silu"))
    inputs = case.inputs()
    tiny = tuple(1e-7 * s for s in inputs.initial_state)
    check_attention(triton(), case, dataclasses.replace(inputs, initial_state=tiny))


@VARIANTS
def test_a_tile_changes_nothing(variant):
    case = Case(chunk=40, lengths=(61,))
    inputs = case.inputs()
    first, *others = (run_attention(triton(variant, tile)(case.spec), inputs, case.lengths)[0] for tile in (16, 32, 64))
    for other in others:
        assert_close(other, first.double(), 2e-6, "y")
