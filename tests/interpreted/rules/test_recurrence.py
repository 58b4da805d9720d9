"""The Triton kernels of any rule, against the eager walk in float64 and its autograd."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from codegen.device import cpu
from codegen.kernels.build import build_legal
from codegen.kernels.operator import CompiledOperator
from codegen.rule import Rule
from codegen.schedules.triton import TritonSchedule
from codegen.spec import Spec
from tests.support.cases.recurrence import Run, check_attention, check_step
from tests.trellis_ops.family.cases import Case

ONE = {"passes": 1}
PLAIN = {"phi": "identity", **ONE}
RULES = {
    "trellis": Rule(phi_eps=1e-2),
    "two_passes": Rule(phi_eps=1e-2, step_size="token", decay="slot", momentum=True, window=3),
    "reader_writer": Rule("softmax", decay="none", step_size="reader_writer"),
    "gated_delta": Rule(decay_first=True, step_size="token", **PLAIN),
    "erase": Rule("hebbian", erase=True, decay="channel", **ONE),
    "momentum": Rule("huber", momentum=True, **ONE),
    "loss": Rule("smooth_l3", **ONE),
    "probe": Rule(probe="own", decay="channel", decay_first=True, **PLAIN),
    "unread_probe": Rule("hebbian", probe="own", **ONE),
    "gain": Rule("layer_norm_gain", step_size="reader_writer", decay="none", phi_eps=1e-2, **ONE),
    "window": Rule(window=4, **PLAIN),
    "divided": Rule("hebbian", normaliser="read", **ONE),
    "divided_twice": Rule(normaliser="both", decay="none", read="chunk_start", **PLAIN),
    "transposed": Rule(transposed=True, decay="slot", decay_first=True, **PLAIN),
    "solve": Rule("hebbian", link="solve"),
    "view": Rule("huber", view="softmax", **ONE),
    "through_the_view": Rule(view="l2_silu", view_gradient=True, decay_first=True, out="ln_silu", **PLAIN),
    "views_before": Rule("identity", link="softmax", view="softmax", view_gradient=True, read="before"),
    "gated_slots": Rule("hebbian", link="softmax", decay="slot"),
}
SEGMENT = 2


def triton(spec: Spec) -> CompiledOperator:
    """With segments so short that few tokens fill several; they are no legal ones, as states take much memory."""
    simple = TritonSchedule("recurrence", 16, num_warps=4, num_stages=1, dot_precision="ieee")
    if spec.problem.direction != "forward":
        simple = replace(simple, variant="recurrence_backward", checkpoint_spacing=SEGMENT)
    return build_legal(spec, simple, cpu())


def small(name: str, **changes: object) -> Case:
    case = Case(RULES[name], batch=1, tokens=5, heads=1, dim_k=3, dim_v=5, slots=4)
    return replace(case, **changes)


@pytest.mark.parametrize("name", RULES)
def test_exact(name):
    check_attention(triton, Run(small(name), "backward"))


@pytest.mark.parametrize("name", RULES)
def test_chunks_that_no_segment_divides(name):
    check_attention(triton, Run(small(name, chunk=3), "backward"))


@pytest.mark.parametrize("name", ["trellis", "reader_writer", "gated_delta", "divided_twice", "views_before"])
@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_first_order(name, chunk):
    check_attention(triton, Run(small(name, chunk=chunk, tokens=3), "backward_first_order"))


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("chunked", [False, True])
def test_step(name, chunked):
    check_step(triton, Run(small(name, batch=2, tokens=1, heads=2)), chunked)


@pytest.mark.parametrize("name", ["trellis", "window", "gain"])
@pytest.mark.parametrize("chunk", [1, 3])
def test_packed_sequences_of_which_one_is_empty(name, chunk):
    run = Run(small(name, chunk=chunk, tokens=6, heads=2), "backward", packed=(0, 1, 1, 6))
    check_attention(triton, run)


@pytest.mark.parametrize("name", ["gated_delta", "gated_slots"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_bfloat16(name, direction):
    check_attention(triton, Run(small(name, chunk=2, heads=2), direction, "bfloat16"))


@pytest.mark.parametrize("name", ["two_passes", "erase"])
def test_sizes_that_are_no_powers_of_two(name):
    check_attention(triton, Run(small(name, tokens=3, dim_k=24, dim_v=40, slots=5), "backward"))


@pytest.mark.parametrize("name", ["trellis", "gated_slots", "gated_delta"])
def test_one_slot_and_one_token(name):
    check_attention(triton, Run(small(name, tokens=1, slots=1, dim_v=1, dim_k=1), "backward"))


def test_a_memory_that_forgets_all():
    run = Run(small("gated_slots", tokens=3), "backward")
    given, initial = run.inputs()
    given["log_decay"][:, 1] = -torch.inf

    class Forgetful(Run):
        def inputs(self):
            return given, initial

    check_attention(triton, Forgetful(run.case, run.direction))
