"""How far a call reaches: what its kernels count in 32 bits, and the bytes of what it allocates, known before it runs.

Offsets of elements are 64-bit numbers everywhere, but tokens, programs and states kept are counted in 32 bits.
"""

from __future__ import annotations

from dataclasses import dataclass

from codegen.errors import ShapeError, SizeError
from codegen.schedules.schedule import (
    Schedule,
    TritonSchedule,
    TvmSchedule,
    dots_in_bfloat16,
    keeps_bfloat16,
    segment_tiles,
    segment_tokens,
)
from codegen.spec import Problem, Spec

MOST = 2**31 - 1
"""The largest number of 32 bits with a sign."""

MOST_SEGMENTS = 32
"""Parts that variant `pair` walks a sequence in, at most."""

_LONGEST_TILE = 64
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_STATE = 4

Bytes = dict[str, int]
"""Bytes by the names of tensors."""


@dataclass(frozen=True)
class Extent:
    """How much a call walks.

    Attributes:
        tokens: of all sequences, B x T.
        heads: H.
        sequences: N.
        chunks: chunk-start states of one head, or of a backward those that it keeps.
        most_chunks: those of the longest sequence.
    """

    tokens: int
    heads: int
    sequences: int
    chunks: int
    most_chunks: int


def require_countable(spec: Spec, schedule: Schedule, extent: Extent) -> None:
    """Raise unless the kernels can count what a call walks.

    Raises:
        ShapeError: one token's heads of a tensor are too large, or a tensor has too many tokens.
        SizeError: too many programs, or too many states to keep.
    """
    problem = spec.problem
    # The end of a chunk is formed before it is compared with that of its sequence.
    beyond = max(problem.chunk, segment_tokens(spec, schedule), _LONGEST_TILE)
    if extent.tokens + beyond > MOST:
        expected = (
            f"at most {MOST - beyond} tokens in all where C is {problem.chunk}: kernels count them in 32 bits; pass"
            ' fewer sequences at a time, or implementation="eager"'
        )
        name = "w" if problem.operator.startswith("memory") else "q"
        shape = (extent.tokens, extent.heads, problem.dim_k)
        raise ShapeError(name=f"{name}, its sequences one after the other,", shape=shape, expected=expected)
    for name, count in _counts(spec, schedule, extent).items():
        if count > MOST:
            expected = f"at most {MOST}: kernels count in 32 bits; pass fewer tokens, sequences or heads at a time"
            raise SizeError(name=name, value=count, expected=expected)


def _counts(spec: Spec, schedule: Schedule, extent: Extent) -> dict[str, int]:
    """What the kernels of `schedule` count, each by what it is."""
    problem = spec.problem
    programs = extent.sequences * extent.heads
    if schedule.variant in ("split", "readout", "backward_split", "backward_chunks"):
        programs *= max(extent.most_chunks, 2)
    if isinstance(schedule, TritonSchedule):
        # Rows of a tile, from its first on, are 32-bit numbers where registers are short.
        widest = max(problem.dim_k, problem.dim_v, problem.slots)
        rows = schedule.tile_rows if schedule.variant == "backward_chunks" else 1
        return {
            "programs of a kernel": programs,
            "states to keep": extent.chunks,
            "H x width x tokens of a tile": extent.heads * widest * rows,
        }
    assert isinstance(schedule, TvmSchedule)
    if schedule.variant == "pair":
        programs *= 2
    counts = {"programs x threads of a kernel": programs * schedule.threads, "states to keep": extent.chunks}
    if schedule.variant == "pair":
        span = max(problem.chunk, schedule.tile_tokens // problem.chunk * problem.chunk)
        steps = -(-extent.most_chunks * problem.chunk // span)
        counts["steps of a sequence x segments"] = steps * (MOST_SEGMENTS + 1)
    return counts


def input_bytes(spec: Spec, extent: Extent, float64: bool = False) -> int:
    """What the tensors of a call take that have a row for each token, or for a readout one for each chunk."""
    problem = spec.problem
    wide = 8 if float64 else _BYTES[problem.dtype]
    made = extent.tokens * extent.heads * (2 * problem.dim_k + problem.dim_v + problem.slots) * wide
    if problem.operator.startswith("memory_readout"):
        made += extent.chunks * extent.heads * problem.slots * problem.dim_k * _STATE
    return made


def forward_bytes(spec: Spec, schedule: Schedule | None, extent: Extent, float64: bool = False) -> Bytes:
    """What a call allocates besides copies of its inputs: results, and buffers between its kernels.

    Args:
        spec: what it computes; of a direction with a backward, the forward that keeps states for it.
        schedule: how; None for the eager implementation, which holds its results twice when it puts them together.
        extent: how far it reaches.
        float64: whether the inputs are, as only the eager implementation takes them.
    """
    problem = spec.problem
    wide = 8 if float64 else _BYTES[problem.dtype]
    state = 8 if float64 else _STATE
    tokens = extent.tokens * extent.heads
    states = extent.sequences * extent.heads * problem.slots
    made: Bytes = {}
    if problem.operator == "memory_update":
        made["chunk_states"] = extent.chunks * extent.heads * problem.slots * problem.dim_k * state
        made["codes"] = tokens * problem.slots * state
        made["final state"] = states * problem.dim_k * state
    elif problem.operator == "memory_readout":
        made["y"] = tokens * problem.slots * wide
    elif problem.operator == "memory_readout_transposed":
        made["y"] = tokens * problem.dim_k * wide
    else:
        made["y"] = tokens * problem.dim_v * wide
        if problem.operator == "trellis_attention":
            made["final states"] = states * (problem.dim_k + problem.dim_v) * state
    if schedule is None:
        return {name: 2 * count for name, count in made.items()}
    return made | _between_forward(problem, schedule, extent)


def _between_forward(problem: Problem, schedule: Schedule, extent: Extent) -> Bytes:
    """What the kernels of a forward of `trellis_attention` leave for each other, or for a backward."""
    made: Bytes = {}
    slots = extent.tokens * extent.heads * problem.slots
    of_chunks = extent.chunks * extent.heads * problem.slots * (problem.dim_k + problem.dim_v)
    if problem.operator != "trellis_attention":
        return made
    if problem.direction != "forward":
        made["kept states"] = of_chunks * _STATE
    elif schedule.variant == "split":
        made["chunk_states"] = of_chunks * (2 if keeps_bfloat16(schedule) else _STATE)
    if schedule.variant in ("split", "backward_chunks"):
        made["codes"] = 2 * slots * (2 if dots_in_bfloat16(schedule) else 4)
    elif schedule.variant == "pair":
        made["o"] = slots * 4
    return made


def reverse_bytes(spec: Spec, schedule: Schedule | None, extent: Extent, float64: bool = False) -> Bytes:
    """What the reverse pass of a backward allocates: gradients, and buffers between and inside its kernels."""
    problem = spec.problem
    wide = 8 if float64 else _BYTES[problem.dtype]
    state = 8 if float64 else _STATE
    tokens = extent.tokens * extent.heads
    dims = problem.dim_k + problem.dim_v
    made = {
        "gradients of q, k, v and target": tokens * (dims + problem.dim_k + problem.slots) * wide,
        "gradients of log_decay and step_size": 2 * tokens * state,
        "gradients of states": extent.sequences * extent.heads * problem.slots * dims * state,
    }
    if isinstance(schedule, TvmSchedule):
        return made | {"states of tiles": _tvm_tiles(spec, schedule, extent)}
    if isinstance(schedule, TritonSchedule):
        return made | _between_reverse(spec, schedule, extent)
    return made


def _tvm_tiles(spec: Spec, schedule: TvmSchedule, extent: Extent) -> int:
    problem, width = spec.problem, schedule.vector_width
    slots, dim_k, dim_v = (-(-n // width) * width for n in (problem.slots, problem.dim_k, problem.dim_v))
    return schedule.threads * segment_tiles(spec, schedule, extent.tokens) * slots * (dim_k + dim_v) * _STATE


def _between_reverse(spec: Spec, schedule: TritonSchedule, extent: Extent) -> Bytes:
    problem = spec.problem
    slots, of_dots = extent.tokens * extent.heads * problem.slots, 2 if dots_in_bfloat16(schedule) else 4
    dims = problem.dim_k + problem.dim_v
    if schedule.variant == "backward_chunks":
        rows = 4 if spec.rule.link == "identity" else 5
        of_chunks = 2 * extent.chunks * extent.heads * problem.slots * dims * of_dots
        return {"codes and their cotangents": slots * (rows * of_dots + 4), "cotangents of chunk states": of_chunks}
    made = {"r and its cotangent": slots * (2 * of_dots + 4)} if schedule.variant == "backward_split" else {}
    tiles = schedule.checkpoint_spacing * -(-problem.chunk // schedule.tile_rows)
    if tiles > 1:
        made["states of tiles"] = extent.sequences * extent.heads * tiles * problem.slots * dims * _STATE
    return made
