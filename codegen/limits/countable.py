"""What a call's kernels count in 32 bits, known before it runs.

Offsets of elements are 64-bit numbers everywhere, but tokens, programs and states kept are counted in 32 bits.
"""

from __future__ import annotations

from codegen.errors import ShapeError, SizeError
from codegen.limits.extent import MOST, Extent
from codegen.schedules.schedule import Schedule
from codegen.spec import Spec

_LONGEST_TILE = 64


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
