"""Products with packed weights, which are read once: a panel of outputs lies in the lanes, its inputs one by one.

A product takes several rows of its input at a time, so that a vector of weights serves all of them from registers; a
panel stays in the second-level cache until every row has met it. `codegen.kernels.layer.layout` says how weights lie.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Buffer, Expr
from codegen.backends.tvm.layer.sums import Inputs, Matrix, product, rows_of, scaled
from codegen.kernels.layer.layout import PANEL

Store = Callable[[Expr, Expr, Callable[[Expr], Expr]], None]
"""store(row, o, value): what becomes of the outputs o + lane of a row; value(lane) is one of them."""


def each_rows(count: Expr, rows: int, statement: Callable[[Expr, int], None]) -> None:
    """Emits statement(row, rows) for tiles of `rows` rows, and for those that are left in tiles of half as many.

    So on, down to one row: a row alone reads the panel anew.
    """
    first, left = 0, count
    while rows:
        with T.serial(left // rows) as tile:
            statement(first + tile * rows, rows)
        first, left, rows = first + left // rows * rows, left % rows, rows // 2


def multiply(matrix: Matrix, panel: Expr, x: Inputs, rows: int, store: Store) -> None:
    """Emits store for the outputs of a panel, PANEL lanes of each row of x, `rows` rows at a time."""

    def of_rows(row: Expr, count: int) -> None:
        for r, total in enumerate(product(matrix, panel, x, row, count)):
            store(row + r, panel * PANEL, functools.partial(scaled, matrix, panel, total))

    each_rows(rows_of(x), rows, of_rows)


def whole(statement: Callable[[Expr, Expr, Callable[[Expr], Expr]], None]) -> Store:
    """statement(row, o, value(lane)) for every lane of a panel at once."""

    def store(row: Expr, o: Expr, value: Callable[[Expr], Expr]) -> None:
        with T.vectorized(PANEL) as lane:
            statement(row, o + lane, value(lane))

    return store


def up_to(outputs: int, statement: Callable[[Expr, Expr, Expr], None]) -> Store:
    """statement(row, o, value) for every lane of a panel that is an output, at once where all are."""
    if outputs % PANEL == 0:
        return whole(statement)

    def store(row: Expr, o: Expr, value: Callable[[Expr], Expr]) -> None:
        with T.serial(T.min(PANEL, outputs - o)) as lane:
            statement(row, o + lane, value(lane))

    return store


def multiply_gated(matrix: Matrix, pair: Expr, x: Inputs, rows: int, gate: Callable[[Expr], Expr], to: Buffer) -> None:
    """to <- gate(of one panel) * (of the next), of each row of x, `rows` rows at a time."""

    def of_rows(row: Expr, count: int) -> None:
        opening = product(matrix, pair * 2, x, row, count)
        passing = product(matrix, pair * 2 + 1, x, row, count)
        for r in range(count):
            with T.vectorized(PANEL) as lane:
                opened = gate(scaled(matrix, pair * 2, opening[r], lane))
                value = opened * scaled(matrix, pair * 2 + 1, passing[r], lane)
                T.buffer_store(to, value, [row + r, pair * PANEL + lane])

    each_rows(rows_of(x), rows, of_rows)
