"""The arguments of every kernel, declared once: name, axes, type, access, and when a kernel has them.

Argument lists of the templates, pointer types, buffers between kernels, the tuner's seeded and poisoned tensors and the
table in templates/README.md follow from these declarations. All tensors are contiguous and flattened over tokens. A
name that starts with d is the cotangent of what follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from codegen.errors import UnknownKernelError
from codegen.kernels import rule_arguments
from codegen.kernels.arguments import (
    DOTS,
    FLOAT,
    IN_PLACE,
    INPUT,
    INT,
    KEPT,
    READ,
    WRITTEN,
    Argument,
)
from codegen.schedules.schedule import Schedule
from codegen.spec import FAMILY_OPERATORS, Spec


@dataclass(frozen=True)
class Condition:
    """When arguments are there: in words, and as a test of the spec and the schedule.

    An operator is described before it has a schedule, so conditions of its arguments look at the spec alone.
    """

    words: str
    holds: Callable[[Spec, Any], bool]


@dataclass(frozen=True)
class Group:
    """Neighbouring arguments that are used alike, and are there under the same condition."""

    access: str
    names: tuple[str, ...]
    when: Condition | None = None


def reads(names: str, when: Condition | None = None) -> Group:
    """Arguments that are only read."""
    return Group(READ, tuple(names.split()), when)


def writes(names: str, when: Condition | None = None) -> Group:
    """Arguments that are written; what they held before does not matter."""
    return Group(WRITTEN, tuple(names.split()), when)


def updates(names: str, when: Condition | None = None) -> Group:
    """Arguments that are read, and then written in place."""
    return Group(IN_PLACE, tuple(names.split()), when)


TENSORS: dict[str, tuple[str, str]] = {
    **dict.fromkeys(("q", "k", "w", "dq", "dk"), ("tokens heads dim_k", INPUT)),
    **dict.fromkeys(("v", "dv", "y", "dy"), ("tokens heads dim_v", INPUT)),
    **dict.fromkeys(("target", "dtarget", "read"), ("tokens heads slots", INPUT)),
    **dict.fromkeys(("log_decay", "step_size", "dlog_decay", "dstep_size"), ("tokens heads", FLOAT)),
    **dict.fromkeys(("S", "S_k", "G_k", "dS_k"), ("sequences heads slots dim_k", FLOAT)),
    **dict.fromkeys(("S_v", "G_v", "dS_v"), ("sequences heads slots dim_v", FLOAT)),
    **dict.fromkeys(("cu_seqlens", "chunk_offsets"), ("offsets", INT)),
    "chunk_states": ("chunks heads slots dim_k", FLOAT),
    "chunk_states_k": ("chunks heads slots dim_k", KEPT),
    "chunk_states_v": ("chunks heads slots dim_v", KEPT),
    **dict.fromkeys(("dT_k", "dstates_k"), ("chunks heads slots dim_k", DOTS)),
    **dict.fromkeys(("dT_v", "dstates_v"), ("chunks heads slots dim_v", DOTS)),
    **dict.fromkeys(("codes_k", "codes_v", "r", "o", "dr", "Y_k", "Y_v"), ("tokens heads slots", DOTS)),
    # With more digits than dots take: the kernels that share do spill with fewer.
    **dict.fromkeys(("codes", "do", "dtarget_v"), ("tokens heads slots", FLOAT)),
    "tile_states_k": ("workers tiles padded_slots padded_dim_k", FLOAT),
    "tile_states_v": ("workers tiles padded_slots padded_dim_v", FLOAT),
    **dict.fromkeys(("most_chunks", "segments", "wanted"), ("", INT)),
}
"""Axes and type of every name; a name means the same in every kernel, but for what `_axes` says."""

_KEEPS = Condition("backward directions", lambda spec, _: spec.problem.direction != "forward")
_BOTH = Condition("trellis_attention", lambda spec, _: spec.problem.operator == "trellis_attention")
_ONE = Condition("other operators", lambda spec, _: spec.problem.operator != "trellis_attention")
_STEPS_CHUNKED = Condition("trellis_step_chunked", lambda spec, _: spec.problem.operator == "trellis_step_chunked")
_LEAVES = Condition("variant backward_chunks", lambda _, schedule: schedule.variant == "backward_chunks")
_LINKED = Condition("link is no identity", lambda spec, _: spec.rule.link != "identity")
_LEAVES_LINKED = Condition(
    "variant backward_chunks, link is no identity",
    lambda spec, schedule: _LEAVES.holds(spec, schedule) and _LINKED.holds(spec, schedule),
)
_SKIPS = Condition("TVM", lambda _, schedule: schedule.skips_unwanted)
_AGAIN = Condition(
    "TVM; Triton with several tiles between kept states",
    lambda spec, schedule: schedule.keeps_tile_states(spec),
)


_GATED = "target log_decay step_size"
_OFFSETS = "cu_seqlens chunk_offsets"
_BAR_GATED = "dtarget dlog_decay dstep_size"

KERNELS: dict[str, tuple[Group, ...]] = {
    "trellis_fused": (
        reads(f"q k v {_GATED}"),
        updates("S_k S_v"),
        reads("cu_seqlens"),
        reads("chunk_offsets", _KEEPS),
        writes("chunk_states_k chunk_states_v", _KEEPS),
        writes("y"),
    ),
    "trellis_pair": (
        reads(f"segments q k v {_GATED}"),
        updates("S_k S_v"),
        reads("cu_seqlens"),
        writes("o y"),
    ),
    "trellis_update": (
        reads(f"k v {_GATED}"),
        updates("S_k S_v"),
        reads(_OFFSETS),
        writes("chunk_states_k codes_k chunk_states_v codes_v"),
    ),
    "memory_update": (
        reads(f"w {_GATED}"),
        updates("S"),
        reads(_OFFSETS),
        writes("chunk_states codes"),
    ),
    "memory_readout": (
        reads("q k v log_decay step_size chunk_states_k codes_k chunk_states_v codes_v", _BOTH),
        reads("read w log_decay step_size chunk_states codes", _ONE),
        reads(f"{_OFFSETS} most_chunks"),
        writes("y"),
    ),
    "memory_step": (
        reads(f"q k v {_GATED}"),
        updates("S_k S_v"),
        reads("G_k G_v", _STEPS_CHUNKED),
        reads("cu_seqlens"),
        writes("y"),
    ),
    "trellis_backward": (
        reads("wanted", _SKIPS),
        reads(f"q k v {_GATED} chunk_states_k chunk_states_v dy"),
        updates("dS_k dS_v"),
        reads(_OFFSETS),
        writes("tile_states_k tile_states_v", _AGAIN),
        writes(f"dq dk dv {_BAR_GATED}"),
    ),
    "keys_readout": (
        reads(f"q k {_GATED} chunk_states_k {_OFFSETS} most_chunks"),
        writes("r"),
        writes("codes_k", _LEAVES),
        writes("o", _LEAVES_LINKED),
    ),
    "values_backward": (
        reads(f"v {_GATED} r chunk_states_v dy"),
        updates("dS_v"),
        reads(_OFFSETS),
        writes("tile_states_v", _AGAIN),
        writes("dv dr dtarget_v dlog_decay dstep_size"),
    ),
    "keys_backward": (
        reads(f"q k {_GATED} chunk_states_k dr dtarget_v"),
        updates("dS_k"),
        reads(_OFFSETS),
        writes("tile_states_k", _AGAIN),
        writes("dq dk dtarget"),
        updates("dlog_decay dstep_size"),
    ),
    "values_reading": (
        reads(f"v {_GATED} r"),
        reads("o", _LINKED),
        reads(f"chunk_states_v dy {_OFFSETS} most_chunks"),
        writes("do Y_v dT_v dv dlog_decay"),
    ),
    "keys_reading": (
        reads(f"q k log_decay step_size chunk_states_k codes_k do {_OFFSETS} most_chunks"),
        writes("Y_k dT_k dq dk"),
        updates("dlog_decay"),
    ),
    "states_backward": (
        reads(f"k v {_GATED} chunk_states_k chunk_states_v Y_k Y_v dT_k dT_v"),
        updates("dS_k dS_v"),
        writes("dstates_k dstates_v"),
        reads(_OFFSETS),
    ),
    "values_writing": (
        reads(f"v {_GATED} chunk_states_v Y_v dstates_v {_OFFSETS} most_chunks"),
        updates("dv"),
        writes("dtarget"),
        updates("dlog_decay"),
        writes("dstep_size"),
    ),
    "keys_writing": (
        reads(f"k {_GATED} chunk_states_k Y_k dstates_k {_OFFSETS} most_chunks"),
        updates(f"dk {_BAR_GATED}"),
    ),
}
"""The arguments of every kernel in order; before them each is told how many programs to run."""

OPERATORS: dict[str, tuple[Group, ...]] = {
    "trellis_attention": (
        reads(f"q k v {_GATED}"),
        updates("S_k S_v"),
        writes("y"),
        writes("chunk_states_k chunk_states_v", _KEEPS),
        reads("dy", _KEEPS),
        updates("dS_k dS_v", _KEEPS),
        writes(f"dq dk dv {_BAR_GATED}", _KEEPS),
    ),
    "memory_update": (reads(f"w {_GATED}"), updates("S"), writes("chunk_states codes")),
    "memory_readout": (reads("read w chunk_states codes log_decay step_size"), writes("y")),
    "memory_readout_transposed": (reads("read w chunk_states codes log_decay step_size"), writes("y")),
    "trellis_step": (reads(f"q k v {_GATED}"), updates("S_k S_v"), writes("y")),
    "trellis_step_chunked": (reads(f"q k v {_GATED}"), updates("S_k S_v"), reads("G_k G_v"), writes("y")),
}
"""What a compiled operator takes and gives, besides the offsets of sequences; the rest lies between kernels. What is
read or moved has the order of the registered operators' schemas."""

MOVES_STATES = ("trellis_step", "trellis_step_chunked", "memory_step", "memory_step_chunked")
"""Operators that write the caller's own states in place; the others write copies."""


def kernel_arguments(kernel: str, spec: Spec, schedule: Schedule) -> tuple[Argument, ...]:
    """The arguments of a kernel, compiled for `spec` by `schedule`, in order.

    Raises:
        UnknownKernelError: no kernel has that name.
    """
    if kernel in rule_arguments.KERNELS:
        return rule_arguments.kernel_arguments(kernel, spec)
    if kernel not in KERNELS:
        raise UnknownKernelError(name=kernel, known=", ".join(KERNELS))
    return tuple(_arguments(KERNELS[kernel], spec, schedule))


def operator_arguments(spec: Spec) -> tuple[Argument, ...]:
    """What the operator of `spec` takes and gives, however it is compiled."""
    if spec.problem.operator in FAMILY_OPERATORS:
        return rule_arguments.operator_arguments(spec)
    return tuple(_arguments(OPERATORS[spec.problem.operator], spec, None))


def _arguments(groups: tuple[Group, ...], spec: Spec, schedule: Schedule | None) -> Iterator[Argument]:
    for group in groups:
        if group.when is None or group.when.holds(spec, schedule):
            for name in group.names:
                _, kind = TENSORS[name]
                yield Argument(name, _axes(name, spec), kind, group.access)


def _axes(name: str, spec: Spec) -> tuple[str, ...]:
    if name == "step_size" and spec.rule.step_size == "head":
        return ("heads",)
    if spec.problem.operator == "memory_readout":
        name = {"read": "w", "y": "target"}.get(name, name)
    axes, _ = TENSORS[name]
    return tuple(axes.split())


def dtype_of(argument: Argument, spec: Spec, schedule: Schedule) -> str:
    """The type of an argument as torch calls it: "float32", "bfloat16", "float16" or "int32"."""
    if argument.type == INPUT:
        return spec.problem.dtype
    if argument.type == DOTS:
        return "bfloat16" if schedule.dots_in_bfloat16 else "float32"
    if argument.type == KEPT:
        return "bfloat16" if schedule.keeps_bfloat16 else "float32"
    return argument.type
