"""Products of matrices, register-tiled."""

from __future__ import annotations

from collections.abc import Callable

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Buffer, Expr
from codegen.backends.tvm.emit.tile import Tile
from codegen.backends.tvm.emit.vectors import each_block
from codegen.schedules.tvm_fields import VECTORS_PER_ROW

Entry = Callable[[Expr, Expr], Expr]
"""An entry of a matrix, by its row and column."""

Term = tuple[Expr, Entry, Entry]
"""Depth, left, right: the sum over i < depth of left(m, i) * right(i, j), whose depth may be a function."""

Store = Callable[[Expr, Expr, Expr], None]
"""What is emitted at a row and column, with the sum there."""


def product(
    tile: Tile,
    rows: int,
    width: int,
    first_term: Term,
    store: Store,
    scale: Entry | None = None,
    second_term: Term | None = None,
) -> None:
    """Emits store(m, j, sum) for every row m and column j of a product; columns lie in the lanes.

    With a second term, the first is multiplied by scale(m, j) before the second is added; its depth may be a function
    of the first row that follows.
    """

    def columns(offset: Expr, block: int) -> None:
        # As many rows at a time as have an accumulator of `block` lanes each.
        group = min(rows, max(1, tile.accumulators * tile.width // block))
        terms = (first_term, store, scale, second_term)
        with T.serial(rows // group) as g:
            _block_of_sums(g * group, group, offset, block, *terms)
        if rows % group:
            _block_of_sums(rows // group * group, rows % group, offset, block, *terms)

    each_block(width, VECTORS_PER_ROW * tile.width, columns)


def _block_of_sums(
    row: Expr,
    group: int,
    offset: Expr,
    block: int,
    first_term: Term,
    store: Store,
    scale: Entry | None,
    second_term: Term | None,
) -> None:
    """`group` rows from `row` on, `block` lanes from `offset` on, summed in registers."""
    sums = [T.alloc_buffer((block,), "float32") for _ in range(group)]

    def every_row(statement: Callable[[Expr, Expr, Buffer], None]) -> None:
        with T.vectorized(block) as lane:
            for r in range(group):
                statement(row + r, lane, sums[r])

    def add(depth: Expr, left: Entry, right: Entry) -> None:
        with T.serial(depth(row + group) if callable(depth) else depth) as i:
            every_row(lambda m, lane, x: T.buffer_store(x, x[lane] + left(m, i) * right(i, offset + lane), [lane]))

    every_row(lambda m, lane, x: T.buffer_store(x, T.float32(0), [lane]))
    add(*first_term)
    if second_term is not None:
        assert scale is not None
        every_row(lambda m, lane, x: T.buffer_store(x, x[lane] * scale(m, offset + lane), [lane]))
        add(*second_term)
    every_row(lambda m, lane, x: store(m, offset + lane, x[lane]))
