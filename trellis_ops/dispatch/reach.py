"""How far a checked call reaches on a schedule: refused where its kernels cannot count it, else what it allocates."""

from __future__ import annotations

from dataclasses import dataclass

from codegen.kernels.buffers import forward_bytes, input_bytes, reverse_bytes
from codegen.limits.countable import require_countable
from codegen.limits.extent import Extent
from codegen.schedules.schedule import Schedule
from trellis_ops.calls.arguments import Request
from trellis_ops.dispatch import launch, memory_room
from trellis_ops.dispatch.memory_room import Needs


@dataclass(frozen=True)
class Reach:
    """How far a call reaches.

    Attributes:
        chunk_tokens: how many tokens lie between two states that it keeps.
        needs: what it and its reverse pass allocate, if that is much; None if it is little.
    """

    chunk_tokens: int
    needs: Needs | None


def reach_of(request: Request, schedule: Schedule | None) -> Reach:
    """How far `request` reaches on `schedule`, or on the eager implementation.

    Raises:
        ShapeError, SizeError: kernels cannot count so much.
    """
    spec, problem = request.spec, request.spec.problem
    kept = problem.chunk if schedule is None else schedule.segment_tokens(spec)
    chunks = launch.count_chunks(problem.batch, problem.tokens, kept, request.packed)
    sequences = problem.batch if request.packed is None else request.packed
    extent = Extent(problem.batch * problem.tokens, problem.heads, sequences, chunks, -(-problem.tokens // kept))
    if schedule is not None:
        require_countable(spec, schedule, extent)
    call, is_forward = (spec, schedule, extent, request.float64), problem.direction == "forward"
    # Where a backward has no kernels, its forward is another call, which has a plan of its own.
    forward = forward_bytes(*call) if is_forward or schedule is not None else {}
    reverse = {} if is_forward else reverse_bytes(*call)
    inputs = input_bytes(spec, extent, request.float64)
    return Reach(kept, memory_room.needs(forward, reverse, inputs, copies=schedule is not None))
