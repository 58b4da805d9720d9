"""The tokens of a tile at once on Triton, for rules that are linear in their state, against the eager walk."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from codegen.device import cpu
from codegen.kernels.build import build_legal
from codegen.kernels.operator import CompiledOperator
from codegen.recurrence.forms import why_no_chunk_form
from codegen.rules import NAMED
from codegen.schedules.legality import why_illegal
from codegen.schedules.triton import TritonSchedule
from codegen.spec import Problem, Spec
from tests.support.cases.recurrence import Build, Run, Strong, check_attention
from tests.support.linear_rules import RULES
from tests.trellis_ops.family.cases import Case, Named

SCHEDULE = TritonSchedule("chunks", 16, num_warps=4, num_stages=1, dot_precision="ieee")


def triton(tile: int = 16) -> Build:
    def build(spec: Spec) -> CompiledOperator:
        return build_legal(spec, replace(SCHEDULE, tile_rows=tile), cpu())

    return build


def small(name: str, **changes: object) -> Case:
    """A tile and a shorter one; sizes that are no powers of two."""
    case = Case(RULES[name], batch=1, tokens=20, heads=1, dim_k=12, dim_v=10, slots=6)
    return replace(case, **({"chunk": 16} if name == "in_place" else {}) | changes)


@pytest.mark.parametrize("name", RULES)
def test_a_tile_and_a_shorter_one(name):
    check_attention(triton(), Run(small(name)))


@pytest.mark.parametrize(("name", "tile"), [("kda", 32), ("gsa_before", 32), ("comba", 64), ("rwkv7", 64)])
def test_longer_tiles(name, tile):
    check_attention(triton(tile), Run(small(name, tokens=tile + 3)))


@pytest.mark.parametrize("name", ["gated_deltanet", "gla", "gsa"])
def test_packed_sequences_of_which_one_is_empty(name):
    check_attention(triton(), Run(small(name, tokens=21, heads=2), packed=(0, 3, 3, 21)))


def test_a_readout_at_the_start_of_the_chunk():
    check_attention(triton(), Run(small("in_place", tokens=50, chunk=32)))


@pytest.mark.parametrize("name", ["kda", "gsa"])
def test_bfloat16(name):
    check_attention(triton(), Run(small(name), dtype="bfloat16"))


@pytest.mark.parametrize(
    "name", ["linear", "gated_deltanet", "comba", "kda", "channel_pre", "rwkv7", "gsa", "gsa_before"]
)
def test_strong_gates_forget_exactly(name):
    check_attention(triton(), Strong(small(name)))


def test_equal_keys_make_no_large_numbers():
    """Powers of this triangular matrix, all ones, have entries of 1e8; its inverse has entries of at most 1."""

    class Equal(Run):
        def inputs(self) -> tuple[Named, Named]:
            given, initial = super().inputs()
            given["k"] = torch.zeros_like(given["k"])
            given["k"][..., 0] = 1.0
            given["step_size"] = torch.ones_like(given["step_size"])
            return given, initial

    check_attention(triton(32), Equal(small("deltanet", tokens=32)))


def test_the_form_is_admitted_where_that_of_tvm_is():
    for name, named in NAMED.items():
        for chunk in (1, 16, 64):
            spec = Spec(named.rule, Problem("memory_attention", heads=1, chunk=chunk))
            assert (why_illegal(spec, SCHEDULE, cpu()) is None) is (why_no_chunk_form(named.rule, chunk) is None), name


@pytest.mark.parametrize(
    ("name", "chunk", "tokens", "variant"),
    [
        *((name, 1, 64, "chunks") for name in ("gla", "deltanet", "gated_deltanet", "comba", "kda", "gdn2", "rwkv7")),
        *((name, 1, 64, "chunks") for name in ("gsa", "abc")),
        *((name, 1, 64, "recurrence") for name in ("titans", "oja", "mesanet")),
        *(("linear", 1, 64, "split_one_pass"), ("kda", 1, 16, "recurrence"), ("in_place_ttt", 40, 64, "stale_chunks")),
        *(("in_place_ttt", 48, 64, "chunks"), ("yaad", 16, 64, "split_one_pass")),
    ],
)
def test_defaults(name, chunk, tokens, variant):
    spec = Spec(NAMED[name].rule, Problem("memory_attention", tokens=tokens, chunk=chunk))
    schedule = TritonSchedule.default(spec, cpu())
    assert schedule.variant == variant
    assert why_illegal(spec, schedule, cpu()) is None
