"""Sums over the lanes of several vectors at once."""

from __future__ import annotations

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Buffer, extent
from codegen.backends.tvm.emit.vectors import bits


def fold(width: int, vectors: list[Buffer]) -> Buffer:
    """Lane r of a vector <- the sum of all lanes of vector r, of as many vectors as a power of two."""
    strides = bits(width)
    for stride in reversed(strides):
        if stride < len(vectors):
            for r in range(stride):
                _fold(vectors[r], vectors[r + stride], stride)
    for stride in strides:
        if stride >= len(vectors):
            _fold(vectors[0], vectors[0], stride)
    return vectors[0]


def _fold(x: Buffer, y: Buffer, stride: int) -> None:
    """Lanes of x <- sums of two of its lanes where bit `stride` is clear, of two lanes of y where it is set."""
    width = extent(x, 0)
    index = T.ramp(0, 1, width)
    near = [lane + width if lane & stride else lane for lane in range(width)]
    far = [(lane ^ stride) + width if lane & stride else lane ^ stride for lane in range(width)]
    T.buffer_store(x, T.Shuffle([x[index], y[index]], near) + T.Shuffle([x[index], y[index]], far), [index])
