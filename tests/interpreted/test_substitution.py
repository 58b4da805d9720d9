"""TRELLIS with C = 1 by forward substitution inside a tile on Triton, against the oracle in float64."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from codegen.device import cpu
from codegen.kernels.build import build
from codegen.kernels.operator import CompiledOperator
from codegen.rule import Rule
from codegen.schedules.triton import TritonSchedule
from codegen.spec import Spec
from tests.support.cases.kernels import Build, Case, check_attention
from tests.support.operators import run_attention

TILED = Case(chunk=1, lengths=(37, 37), heads=1)
"""Two tiles and a shorter one; no size is a power of two."""


def triton(tile: int = 16) -> Build:
    def with_schedule(spec: Spec) -> CompiledOperator:
        schedule = TritonSchedule("substitution", tile, num_warps=4, num_stages=1, dot_precision="tf32x3")
        return build(spec, schedule, cpu())

    return with_schedule


@pytest.mark.parametrize("phi", ["ln_silu", "softmax", "identity"])
def test_tiles_and_a_shorter_one(phi):
    check_attention(triton(), dataclasses.replace(TILED, rule=Rule(phi, out="silu", phi_eps=1e-2, step_size="token")))


@pytest.mark.parametrize("tile", [32, 64])
def test_longer_tiles_and_several_stored_states(tile):
    check_attention(triton(tile), dataclasses.replace(TILED, lengths=(71,)))


@pytest.mark.parametrize(("dim_k", "dim_v", "slots"), [(1, 1, 1), (16, 32, 16)])
def test_one_slot_and_sizes_without_padding(dim_k, dim_v, slots):
    sizes = {"dim_k": dim_k, "dim_v": dim_v, "slots": slots}
    check_attention(triton(), dataclasses.replace(TILED, lengths=(19,), rule=Rule("silu", link="silu"), **sizes))


def test_packed_sequences_of_which_one_is_empty_and_one_a_token():
    check_attention(triton(), dataclasses.replace(TILED, lengths=(17, 0, 1, 5), packed=True, heads=2))


def test_bfloat16():
    check_attention(triton(), dataclasses.replace(TILED, dtype="bfloat16"))


def test_strong_forgetting():
    """As z lies before a token's own gate, the token after one that forgets all still has z = 0."""
    inputs = TILED.inputs()
    for first, gate in enumerate((-torch.inf, -80.0, -40.0), start=1):
        inputs.log_decay[:, first::4] = gate
    check_attention(triton(), TILED, inputs)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_is_not_finite_stays_in_its_sequence():
    """A tile of a sequence reaches over tokens of the next."""
    case = dataclasses.replace(TILED, lengths=(5, 4, 3), packed=True)
    inputs = case.inputs()
    right, _ = run_attention(triton()(case.spec), inputs, case.lengths)
    inputs.k[:, 5:9] = torch.nan
    found, _ = run_attention(triton()(case.spec), inputs, case.lengths)
    assert found[:, 5:9].isnan().all()
    assert torch.equal(found[:, :5], right[:, :5])
    assert torch.equal(found[:, 9:], right[:, 9:])
