"""How pools lie in memory: what kernels take, and whether what is written lies apart."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence

from torch import Tensor

from codegen.errors import LayoutError
from codegen.limits.extent import MOST
from trellis_ops.operators import overlap

_MOST_KNOWN = 1024
_APART: dict[Hashable, tuple[int, int]] = {}
"""Where pools begin and end together, of those that are known to lie apart: a server has the same in every call."""


def check(pools: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
    """Refuse pools that no kernel takes, or that meet each other or an input.

    Args:
        pools: what the call writes: of the states, then of those from the start of the chunk.
        inputs: what it only reads.

    Raises:
        LayoutError: the slots of a pool are not contiguous, or lie 2^31 values apart.
        OverlapError: a pool shares memory with itself, another one or an input.
    """
    key = tuple([(x.data_ptr(), x.shape, x.stride()) for x in pools])
    around = _APART.get(key)
    if around is None:
        for place, x in enumerate(pools):
            _check_strides(f"pool {place}", x)
        overlap.check_states_apart(_named("pool", pools), {}, {})
        if len(_APART) >= _MOST_KNOWN:
            _APART.clear()
        spans = [overlap.span(x) for x in pools]
        around = _APART[key] = min(begin for begin, _ in spans), max(end for _, end in spans)
    near = [x for x in inputs if _reaches(x, *around)]
    if near:
        overlap.check_states_apart(_named("pool", pools), {}, _named("an input", near))


def _named(kind: str, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    return {f"{kind} {place}": x for place, x in enumerate(tensors)}


def _check_strides(name: str, pool: Tensor) -> None:
    shape, strides = pool.shape[1:], pool.stride()[1:]
    dense = list(itertools.accumulate(reversed(shape), lambda size, length: size * length, initial=1))
    expected = tuple(reversed(dense[:-1]))
    if any(length > 1 and one != other for length, one, other in zip(shape, strides, expected, strict=True)):
        raise LayoutError(name=name, strides=pool.stride())
    if pool.stride(0) > MOST:
        raise LayoutError(name=name, strides=pool.stride())


def _reaches(x: Tensor, begin: int, end: int) -> bool:
    first, last = overlap.span(x)
    return first < end and last > begin
