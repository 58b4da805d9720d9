"""A spec of any rule as calls on the same inputs: the public operator, and the eager walk with nothing around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from codegen.kernels.signatures import MOVES_STATES
from codegen.recurrence.of_rule import used_chunk_states
from codegen.recurrence.tensors import HEAD, states, tensors
from codegen.rule import SOLVE
from codegen.spec import CHUNKED_STEP, Spec
from tests.benchmarks.subjects.calls import Call
from trellis_ops import memory_attention, memory_step
from trellis_ops.eager import recurrence as eager
from tuner.verify.inputs.trellis import Inputs

_PAIR = ("erase_a", "erase_b")


@dataclass(frozen=True)
class RuleSubject:
    """The inputs of a spec, bound.

    Attributes:
        operator: `memory_attention` or `memory_step`; takes `implementation=` on top.
        eager: the walk of `trellis_ops.eager.recurrence`.
        leaves: what gradients are taken of; none of a step.
        reset: puts back the states that a step moves.
    """

    spec: Spec
    operator: Call
    eager: Call
    leaves: tuple[Tensor, ...]
    reset: Callable[[], None]


def rule_subject(spec: Spec, inputs: Inputs, gradients: bool = False) -> RuleSubject:
    """Both calls on `inputs` of a memory_attention or a step; with `gradients` all that they are given requires one."""
    per_head = {each.name for each in tensors(spec.rule) if each.per == HEAD}
    step = spec.problem.operator in MOVES_STATES
    given = {}
    for each in tensors(spec.rule):
        x = inputs[each.name].clone().requires_grad_(gradients)
        given[each.name] = x if step or each.name in per_head else x.view(spec.problem.batch, -1, *x.shape[1:])
    if spec.rule.link == SOLVE:
        given["target"] = given["k"]
    held = {name: inputs[name].clone().requires_grad_(gradients) for name in states(spec.rule)}
    return _step(spec, inputs, given, held) if step else _attention(spec, given, held)


def training_step(bound: RuleSubject, call: Call) -> Callable[[], object]:
    """Forward of one of the subject's calls and, from a seeded cotangent of y, backward into all that it was given."""
    wide = (*bound.leaves[0].shape[:-1], bound.spec.problem.dim_v)
    cotangent = torch.randn(wide, generator=torch.Generator().manual_seed(1)).to(bound.leaves[0])

    def run() -> object:
        with torch.enable_grad():
            return torch.autograd.grad(call.y(), bound.leaves, cotangent, allow_unused=True)

    return run


def _attention(spec: Spec, given: dict[str, Tensor], held: dict[str, Tensor]) -> RuleSubject:
    chunk = {"chunk_size": spec.problem.chunk}
    public = {**_public(spec, given), **chunk, "initial_state": tuple(held.values())}
    leaves = tuple(x for name, x in given.items() if name != "target" or spec.rule.link != SOLVE)
    return RuleSubject(
        spec,
        Call(memory_attention, (), public),
        Call(eager.attention, (spec.rule, given, held), chunk),
        (*leaves, *held.values()),
        reset=lambda: None,
    )


def _step(spec: Spec, inputs: Inputs, given: dict[str, Tensor], held: dict[str, Tensor]) -> RuleSubject:
    starts = None
    if spec.problem.operator == CHUNKED_STEP:
        starts = {name: inputs[name].clone() for name in used_chunk_states(spec.rule, True)}
    public = {
        **_public(spec, given),
        "state": tuple(held.values()),
        "chunk_state": None if starts is None else tuple(starts.values()),
    }

    def reset() -> None:
        for name, x in (held | (starts or {})).items():
            x.copy_(inputs[name])

    return RuleSubject(
        spec,
        Call(memory_step, (), public),
        Call(eager.step, (spec.rule, given, held, starts), {}),
        (),
        reset,
    )


def _public(spec: Spec, given: dict[str, Tensor]) -> dict[str, Any]:
    """The tensors as the public functions call them."""
    named: dict[str, Any] = {name: x for name, x in given.items() if name not in _PAIR}
    if spec.rule.link == SOLVE:
        del named["target"]
    if spec.rule.erase:
        named["erase"] = tuple(given[name] for name in _PAIR)
    return {**named, "rule": spec.rule}
