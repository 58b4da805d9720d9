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

Depth = Expr | Callable[[Expr], Expr]
"""How many products a sum has, or that as a function of the first row that follows."""

Term = tuple[Depth, Entry, Entry]
"""Depth, left, right: the sum over i < depth of left(m, i) * right(i, j)."""

Store = Callable[[Expr, Expr, Expr], None]
"""What is emitted at a row and column, with the sum there."""


def product(
    tile: Tile,
    rows: int,
    width: int,
    first_term: Term,
    store: Store,
    scale: Entry | None = None,
    *later_terms: Term,
) -> None:
    """Emits store(m, j, sum) for every row m and column j of a product; columns lie in the lanes.

    The first term is multiplied by scale(m, j), if there is one, before later ones are added.
    """

    def columns(offset: Expr, block: int) -> None:
        # As many rows at a time as have an accumulator of `block` lanes each.
        group = min(rows, max(1, tile.accumulators * tile.width // block))
        terms = (first_term, store, scale, later_terms)
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
    later_terms: tuple[Term, ...],
) -> None:
    """`group` rows from `row` on, `block` lanes from `offset` on, summed in registers."""
    sums = sums_of(row, group, offset, block, (first_term, *later_terms), scale)
    with T.vectorized(block) as lane:
        for r, x in enumerate(sums):
            store(row + r, offset + lane, x[lane])


def sums_of(
    row: Expr, group: int, offset: Expr, block: int, terms: tuple[Term, ...], scale: Entry | None = None
) -> list[Buffer]:
    """A register for each of `group` rows from `row` on: the sums of its terms at `block` lanes from `offset` on.

    The first term is multiplied by scale(m, j), if there is one, before the next is added.
    """
    sums = [T.alloc_buffer((block,), "float32") for _ in range(group)]

    def every_row(statement: Callable[[Expr, Expr, Buffer], None]) -> None:
        with T.vectorized(block) as lane:
            for r in range(group):
                statement(row + r, lane, sums[r])

    def add(depth: Depth, left: Entry, right: Entry) -> None:
        with T.serial(depth(row + group) if callable(depth) else depth) as i:
            every_row(lambda m, lane, x: T.buffer_store(x, x[lane] + left(m, i) * right(i, offset + lane), [lane]))

    every_row(lambda m, lane, x: T.buffer_store(x, T.float32(0), [lane]))
    for place, term in enumerate(terms):
        if place == 1 and scale is not None:
            every_row(lambda m, lane, x: T.buffer_store(x, x[lane] * scale(m, offset + lane), [lane]))
        add(*term)
    return sums
