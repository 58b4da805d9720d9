"""Vectors of `width` numbers: registers, sums across lanes, and loops over the features of a row."""

from __future__ import annotations

from collections.abc import Callable

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Buffer, Expr, extent

LOWEST = -3.4028234663852886e38
"""Of float32."""


def each_feature(width: int, features: int, statement: Callable[[Expr], None]) -> None:
    """Emits statement(d) for every feature d: vectors of `width` lanes, then the rest one by one."""
    whole = features // width
    if whole:
        with T.serial(whole) as b, T.vectorized(width) as lane:
            statement(b * width + lane)
    if features % width:
        with T.serial(features % width) as lane:
            statement(whole * width + lane)


def each_block(features: int, widest: int, statement: Callable[[Expr, int], None]) -> None:
    """Emits statement(offset, lanes) for blocks of `widest` lanes, and of half as many where fewer features are left.

    LLVM takes vectors apart whose lanes are no power of two.
    """
    offset, block = 0, widest
    while offset < features:
        blocks = (features - offset) // block
        if blocks:
            with T.serial(blocks) as j:
                statement(offset + j * block, block)
        offset, block = offset + blocks * block, block // 2


def clear(X: Buffer) -> None:
    """X <- 0, once: its padding then stays zero, and no product needs a mask."""
    with T.serial(extent(X, 0)) as m, T.vectorized(extent(X, 1)) as lane:
        T.buffer_store(X, T.float32(0), [m, lane])


def registers(width: int, count: int) -> list[Buffer]:
    """Vectors that hold nothing yet."""
    return [T.alloc_buffer((width,), "float32") for _ in range(count)]


def zeros(width: int, count: int) -> list[Buffer]:
    """Vectors of zeros."""
    made = registers(width, count)
    with T.vectorized(width) as lane:
        for x in made:
            T.buffer_store(x, T.float32(0), [lane])
    return made


def fill(x: Buffer, value: Expr) -> None:
    """Every lane of x <- value."""
    with T.vectorized(extent(x, 0)) as lane:
        T.buffer_store(x, value, [lane])


def add(x: Buffer, lane: Expr, value: Expr) -> None:
    """A lane of x <- itself + value."""
    T.buffer_store(x, x[lane] + value, [lane])


def sum_of_lanes(*vectors: Buffer) -> None:
    """Emits, for each vector: every lane <- the sum of all of its lanes."""
    _over_lanes(lambda x, y: x + y, vectors)


def highest_of_lanes(*vectors: Buffer) -> None:
    """Emits, for each vector: every lane <- the highest of its lanes."""
    _over_lanes(T.max, vectors)


def _over_lanes(combine: Callable[[Expr, Expr], Expr], vectors: tuple[Buffer, ...]) -> None:
    for x in vectors:
        width = extent(x, 0)
        row = T.ramp(0, 1, width)
        for stride in bits(width):
            other = T.Shuffle([x[row]], [lane ^ stride for lane in range(width)])
            T.buffer_store(x, combine(x[row], other), [row])


def bits(width: int) -> list[int]:
    """1, 2, 4, .. below a power of two."""
    return [1 << bit for bit in range(width.bit_length() - 1)]
