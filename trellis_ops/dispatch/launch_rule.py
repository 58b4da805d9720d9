"""Runs a compiled operator of any rule on the tensors of a call, in the order of the rule's record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from codegen.kernels.arguments import IN_PLACE, INPUT, READ
from codegen.kernels.operator import CompiledOperator
from codegen.kernels.rule_arguments import KEPT, kept_states
from codegen.kernels.sequences import Sequences
from codegen.recurrence.of_rule import used_chunk_states
from codegen.recurrence.tensors import HEAD, states, tensors
from codegen.rule import Rule
from codegen.spec import Problem, Spec
from trellis_ops.dispatch.put_back import put_back


def attention(
    operator: CompiledOperator, given: Sequence[Tensor], initial: Sequence[Tensor], sequences: Sequences
) -> list[Tensor]:
    """y `[B, T, H, D_v]`, the final states, and of a backward operator those that it keeps."""
    spec, q = operator.spec, given[0]
    named = _flat(spec.rule, given)
    finals = _first_states(spec, initial, sequences, q)
    y = torch.empty(named["v"].shape, dtype=q.dtype, device=q.device)
    kept = {}
    if spec.problem.direction != "forward":
        sizes, heads = _sizes(spec), q.shape[-2]
        for name, axes in kept_states(spec).items():
            kept[f"{KEPT}{name}"] = _float32(q, sequences.chunks, heads, *(sizes[axis] for axis in axes))
    operator.forward({**named, **finals, **kept, "y": y}, sequences)
    return [y.view(*q.shape[:-1], y.shape[-1]), *finals.values(), *kept.values()]


def attention_backward(
    operator: CompiledOperator,
    given: Sequence[Tensor],
    kept: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    sequences: Sequences,
) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients of the tensors, each in the shape and type of its own, and those of the initial states.

    Args:
        operator: of a backward direction.
        given: as `attention` was given.
        kept: what it kept.
        cotangents: of y and of the final states.
        sequences: as it was given.
    """
    spec, rule = operator.spec, operator.spec.rule
    named: dict[str, Tensor] = _flat(rule, given)
    named |= dict(zip((f"{KEPT}{name}" for name in kept_states(spec)), kept, strict=True))
    dy, *of_states = cotangents
    named["dy"] = dy.flatten(0, 1).contiguous()
    for name, x in zip(states(rule), of_states, strict=True):
        named[f"d{name}"] = x.clone(memory_format=torch.contiguous_format)
    sizes = {**_sizes(spec), "sequences": sequences.count, "heads": given[0].shape[-2]}
    sizes["tokens"] = given[0].shape[0] * given[0].shape[1]
    for argument in operator.arguments:
        if argument.cotangent_of is not None and argument.access not in (READ, IN_PLACE):
            dtype = given[0].dtype if argument.type == INPUT else torch.float32
            shape = [sizes[axis] for axis in argument.axes]
            named[argument.name] = torch.empty(shape, dtype=dtype, device=given[0].device)
    operator.backward(named, sequences)
    found = []
    for each, x in zip(tensors(rule), given, strict=True):
        gradient = named[f"d{each.name}"]
        found.append((gradient.sum(0) if each.per == HEAD else gradient.view(x.shape)).to(x.dtype))
    return found, [named[f"d{name}"] for name in states(rule)]


def step(
    operator: CompiledOperator,
    given: Sequence[Tensor],
    state: Sequence[Tensor],
    starts: Sequence[Tensor],
    sequences: Sequences,
) -> Tensor:
    """y `[B, H, D_v]`; the states, and the sums of writes among `starts`, move in place."""
    rule = operator.spec.rule
    named = {
        each.name: (x if each.is_input else x.float()).contiguous()
        for each, x in zip(tensors(rule), given, strict=True)
    }
    moved = dict(zip(states(rule), state, strict=True))
    if starts:
        moved |= dict(zip(used_chunk_states(rule, True), starts, strict=True))
    held = {name: x.contiguous() for name, x in moved.items()}
    y = torch.empty_like(named["v"])
    try:
        operator.forward({**named, **held, "y": y}, sequences)
    finally:
        # Kernels write behind autograd's back; what it has saved of these states is gone, also if a kernel fails.
        increment_version(tuple(held.values()))
    for name, x in moved.items():
        if held[name] is not x:
            put_back(x, held[name])
    return y


def _flat(rule: Rule, given: Sequence[Tensor]) -> dict[str, Tensor]:
    """The tensors by name, flattened over tokens, gates in float32."""
    found = {}
    for each, x in zip(tensors(rule), given, strict=True):
        flat = x if each.per == HEAD else x.flatten(0, 1)
        found[each.name] = (flat if each.is_input else flat.float()).contiguous()
    return found


def _first_states(spec: Spec, initial: Sequence[Tensor], sequences: Sequences, q: Tensor) -> dict[str, Tensor]:
    """Copies of the initial states, or zeros, which a kernel moves to the final ones."""
    carried = states(spec.rule)
    if initial:
        copies = (x.clone(memory_format=torch.contiguous_format) for x in initial)
        return dict(zip(carried, copies, strict=True))
    sizes, heads = _sizes(spec), q.shape[-2]
    shapes = {name: (sequences.count, heads, *(sizes[axis] for axis in axes)) for name, axes in carried.items()}
    return {name: torch.zeros(shape, dtype=torch.float32, device=q.device) for name, shape in shapes.items()}


def _sizes(spec: Spec) -> Mapping[str, int]:
    problem: Problem = spec.problem
    return {
        "dim_k": problem.dim_k,
        "dim_v": problem.dim_v,
        "slots": problem.slots,
        "window": spec.rule.window - 1,
    }


def _float32(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)
