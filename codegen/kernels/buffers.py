"""What a call allocates, results and buffers between kernels, by the axes that the signatures declare."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

from codegen.kernels.arguments import BYTES_OF, FLOAT, IN_PLACE, INPUT, READ, Argument
from codegen.kernels.between import arguments as between
from codegen.kernels.declared import kernel_arguments, launches_for, operator_arguments
from codegen.kernels.glue import arguments as glue
from codegen.kernels.pool.arguments import CAPACITY, FIRST_HEADS, is_of_pool
from codegen.kernels.signatures import MOVES_STATES, dtype_of
from codegen.limits.extent import Extent
from codegen.schedules.schedule import Schedule
from codegen.spec import Spec

Bytes = dict[str, int]
"""Bytes by the names of tensors."""

_OFFSETS = {"cu_seqlens", "chunk_offsets"}


def length(axis: str, spec: Spec, schedule: Schedule | None, extent: Extent) -> int:
    """How long an axis of an argument is, of a kernel made for `spec` on a call of that extent.

    Args:
        axis: one of `arguments.AXES`, but for those of offsets.
        spec: of the kernel, or of the operator.
        schedule: of the operator; None for the eager implementation, which has no scratch memory.
        extent: how far the call reaches.
    """
    for own in (between.length(axis, spec), glue.length(axis, spec)):
        if own is not None:
            return own
    if axis in ("slots", "dim_k", "dim_v"):
        return int(getattr(spec.problem, axis))
    if axis in ("tokens", "heads", "sequences", "chunks"):
        return int(getattr(extent, axis))
    if axis in (CAPACITY, FIRST_HEADS):
        # A call reads and writes no more slots of a pool than it has rows.
        return extent.sequences if axis == CAPACITY else extent.heads
    if axis == "window":
        return spec.rule.window - 1
    assert schedule is not None
    if axis == "steps":
        return schedule.segment_tokens(spec) + 1
    if axis == "tiles":
        return schedule.segment_tiles(spec, extent.tokens)
    if axis == "workers":
        return schedule.workers(extent.sequences * extent.heads)
    unit = schedule.row_unit
    return -(-int(getattr(spec.problem, axis.removeprefix("padded_"))) // unit) * unit


def input_bytes(spec: Spec, extent: Extent, float64: bool = False) -> int:
    """What the tensors take that a call reads."""
    return sum(_of_operator(each, spec, extent, float64) for each in _read(_of_any_size(spec)))


def forward_bytes(spec: Spec, schedule: Schedule | None, extent: Extent, float64: bool = False) -> Bytes:
    """What a call allocates besides copies of its inputs: results, and buffers between its kernels.

    Args:
        spec: what it computes; of a direction with a backward, the forward that keeps states for it.
        schedule: how; None for the eager implementation, which holds its results twice when it puts them together.
        extent: how far it reaches.
        float64: whether the inputs are, as only the eager implementation takes them.
    """
    if schedule is None:
        forward = replace(spec, problem=replace(spec.problem, direction="forward"))
        made = [each for each in operator_arguments(forward) if _is_made(each, spec)]
        return {each.name: 2 * _of_operator(each, spec, extent, float64) for each in made}
    return _between(spec, schedule, extent, reverse=False)


def reverse_bytes(spec: Spec, schedule: Schedule | None, extent: Extent, float64: bool = False) -> Bytes:
    """What the reverse pass of a backward allocates: gradients, and buffers between and inside its kernels."""
    if schedule is None:
        made = [each for each in operator_arguments(spec) if each.cotangent_of is not None and each.access != READ]
        return {each.name: _of_operator(each, spec, extent, float64) for each in made}
    return _between(spec, schedule, extent, reverse=True)


def _of_operator(argument: Argument, spec: Spec, extent: Extent, float64: bool) -> int:
    wide = 8 if float64 else BYTES_OF[spec.problem.dtype if argument.type == INPUT else FLOAT]
    return math.prod(length(axis, spec, None, extent) for axis in argument.axes) * wide


# A plan is made for each length of a prompt; what is listed for one serves all.
def _of_any_size(spec: Spec) -> Spec:
    return replace(spec, problem=replace(spec.problem, batch=1, tokens=1, heads=1))


@functools.lru_cache(maxsize=512)
def _read(spec: Spec) -> tuple[Argument, ...]:
    return tuple(each for each in operator_arguments(spec) if each.access == READ and each.cotangent_of is None)


def _between(spec: Spec, schedule: Schedule, extent: Extent, reverse: bool) -> Bytes:
    return {
        name: math.prod(length(axis, part, schedule, extent) for axis in argument.axes) * wide
        for name, argument, part, wide in _made(_of_any_size(spec), schedule, reverse)
    }


@functools.lru_cache(maxsize=512)
def _made(spec: Spec, schedule: Schedule, reverse: bool) -> tuple[tuple[str, Argument, Spec, int], ...]:
    """Every tensor that a pass makes: its buffer, its argument of the first kernel that has it, that kernel's spec."""
    given = {each.name for each in operator_arguments(spec) if not _is_made(each, spec)} | _OFFSETS
    if reverse:
        # What the forward has kept.
        given |= {each.name for each in operator_arguments(spec) if each.cotangent_of is None}
    found: dict[str, tuple[str, Argument, Spec, int]] = {}
    for launch in launches_for(spec, schedule):
        part = launch.spec_of(spec)
        for argument in kernel_arguments(launch.kernel, part, schedule) if launch.reverse is reverse else ():
            name = launch.buffer_of(argument.name)
            if argument.is_tensor and name not in given:
                found.setdefault(name, (name, argument, part, BYTES_OF[dtype_of(argument, part, schedule)]))
    return tuple(found.values())


def _is_made(argument: Argument, spec: Spec) -> bool:
    """Whether a call makes an argument of its operator, as it does of states that it is not to move."""
    moves = spec.problem.operator in MOVES_STATES or is_of_pool(spec)
    return argument.access != READ and not (argument.access == IN_PLACE and moves)
