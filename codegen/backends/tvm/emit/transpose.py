"""Transposing blocks of width x width numbers in registers: in each of log2(width) rounds, rows exchange lanes."""

from __future__ import annotations

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Buffer, extent
from codegen.backends.tvm.emit.tile import Tile
from codegen.backends.tvm.emit.vectors import bits, registers


def transpose(tile: Tile, to: Buffer, rows: Buffer) -> None:
    """to[l, m] <- rows[m, l]. The rounds are unrolled, with a row to a register."""
    width = tile.width
    with T.serial(extent(to, 1) // width) as a, T.serial(extent(to, 0) // width) as b:
        block, other = (registers(width, width) for _ in range(2))
        for r in range(width):
            source = rows[a * width + r, T.ramp(b * width, 1, width)]
            T.buffer_store(block[r], source, [T.ramp(0, 1, width)])
        for stride in bits(width):
            for r in (r for r in range(width) if not r & stride):
                _exchange(block[r], block[r + stride], other[r], other[r + stride], stride)
            block, other = other, block
        for r in range(width):
            T.buffer_store(to, block[r][T.ramp(0, 1, width)], [b * width + r, T.ramp(a * width, 1, width)])


def _exchange(x: Buffer, y: Buffer, to_x: Buffer, to_y: Buffer, stride: int) -> None:
    """The lanes of rows x and y where bit `stride` is clear go to to_x, those where it is set to to_y."""
    width = extent(x, 0)
    row = T.ramp(0, 1, width)
    low = [(lane ^ stride) + width if lane & stride else lane for lane in range(width)]
    high = [lane + width if lane & stride else lane ^ stride for lane in range(width)]
    T.buffer_store(to_x, T.Shuffle([x[row], y[row]], low), [row])
    T.buffer_store(to_y, T.Shuffle([x[row], y[row]], high), [row])
