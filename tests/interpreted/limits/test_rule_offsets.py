"""Triton's kernels of any rule find elements from number 2^32 on, those on a pool its slots too."""

from __future__ import annotations

import pytest

from codegen.device import cpu
from codegen.kernels.build import build_legal
from codegen.kernels.operator import CompiledOperator
from codegen.rule import Rule
from codegen.schedules.triton import TritonSchedule
from codegen.spec import Problem, Spec
from tests.interpreted.limits.test_offsets import SIZE, check

TOKENS = 5
ONE_PASS = Rule(
    "identity", passes=1, step_size="token", decay="channel", probe="own", erase=True, momentum=True, window=3
)
TWO_PASSES = Rule(phi_eps=1e-2, decay="slot", momentum=True)
LINEAR = Rule("identity", passes=1, step_size="token", decay="channel", probe="own")
ERASING = Rule("hebbian", passes=1, decay="channel", erase=True)
SLOTS = Rule("hebbian", link="softmax", decay="slot")


def operator_of(rule: Rule, operator: str, variant: str, chunk: int = 1) -> CompiledOperator:
    """With segments of two tokens, so that few fill several."""
    direction = "backward" if variant.endswith("backward") else "forward"
    sizes = {"dim_k": SIZE, "dim_v": SIZE, "slots": SIZE}
    spec = Spec(rule, Problem(operator, chunk=chunk, direction=direction, **sizes))
    spacing = 2 if direction == "backward" else 1
    schedule = TritonSchedule(variant, 16, num_warps=4, num_stages=1, dot_precision="ieee", checkpoint_spacing=spacing)
    return build_legal(spec, schedule, cpu())


@pytest.mark.parametrize("rule", [ONE_PASS, TWO_PASSES], ids=["one_pass", "two_passes"])
def test_attention_and_its_reverse(rule, monkeypatch):
    check(operator_of(rule, "memory_attention", "recurrence_backward", chunk=4), monkeypatch, TOKENS)


@pytest.mark.parametrize("rule", [ONE_PASS, TWO_PASSES], ids=["one_pass", "two_passes"])
def test_step(rule, monkeypatch):
    check(operator_of(rule, "memory_step_chunked", "recurrence"), monkeypatch)


@pytest.mark.parametrize("rule", [LINEAR, ERASING, SLOTS], ids=["one_pass", "erasing", "two_passes"])
def test_tiles(rule, monkeypatch):
    check(operator_of(rule, "memory_attention", "chunks"), monkeypatch, 20)


@pytest.mark.parametrize("position", [0, 3])
def test_pool(position, monkeypatch):
    check(operator_of(TWO_PASSES, "memory_pool", "pool", chunk=4), monkeypatch, TOKENS, position)
