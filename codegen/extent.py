"""How far a call reaches, and what its kernels count of it in 32 bits, known before it runs.

Offsets of elements are 64-bit numbers everywhere, but tokens, programs and states kept are counted in 32 bits.
"""

from __future__ import annotations

from dataclasses import dataclass

from codegen.errors import ShapeError, SizeError
from codegen.schedules.schedule import (
    Schedule,
    TritonSchedule,
    TvmSchedule,
    segment_tokens,
)
from codegen.spec import Spec

MOST = 2**31 - 1
"""The largest number of 32 bits with a sign."""

MOST_SEGMENTS = 32
"""Parts that variant `pair` walks a sequence in, at most."""

_LONGEST_TILE = 64


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
