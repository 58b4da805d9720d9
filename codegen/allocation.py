"""What a call's kernels count in 32 bits, and the bytes of what it allocates, known before it runs.

Offsets of elements are 64-bit numbers everywhere, but tokens, programs and states kept are counted in 32 bits.
"""

from __future__ import annotations

from codegen.errors import ShapeError, SizeError
from codegen.extent import MOST, Bytes, Extent
from codegen.schedules.schedule import Schedule
from codegen.spec import Problem, Spec

_LONGEST_TILE = 64
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_STATE = 4


def require_countable(spec: Spec, schedule: Schedule, extent: Extent) -> None:
    """Raise unless the kernels can count what a call walks.

    Raises:
        ShapeError: one token's heads of a tensor are too large, or a tensor has too many tokens.
        SizeError: too many programs, or too many states to keep.
    """
    problem = spec.problem
    # The end of a chunk is formed before it is compared with that of its sequence.
    beyond = max(problem.chunk, schedule.segment_tokens(spec), _LONGEST_TILE)
    if extent.tokens + beyond > MOST:
        expected = (
            f"at most {MOST - beyond} tokens in all where C is {problem.chunk}: kernels count them in 32 bits; pass"
            ' fewer sequences at a time, or implementation="eager"'
        )
        name = "w" if problem.operator.startswith("memory") else "q"
        shape = (extent.tokens, extent.heads, problem.dim_k)
        raise ShapeError(name=f"{name}, its sequences one after the other,", shape=shape, expected=expected)
    for name, count in schedule.counts(spec, extent).items():
        if count > MOST:
            expected = f"at most {MOST}: kernels count in 32 bits; pass fewer tokens, sequences or heads at a time"
            raise SizeError(name=name, value=count, expected=expected)


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
        made["chunk_states"] = of_chunks * (2 if schedule.keeps_bfloat16 else _STATE)
    if schedule.variant in ("split", "backward_chunks"):
        made["codes"] = 2 * slots * (2 if schedule.dots_in_bfloat16 else 4)
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
    return made if schedule is None else made | schedule.reverse_buffers(spec, extent)
