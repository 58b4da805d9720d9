"""Products with packed weights, which are read once: a panel of outputs lies in the lanes, its inputs one by one.

A product takes several rows of its input at a time, so that a vector of weights serves all of them from registers; a
panel stays in the second-level cache until every row has met it. `codegen.kernels.layer.layout` says how weights lie.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Buffer, Expr
from codegen.backends.tvm.emit.vectors import zeros
from codegen.kernels.layer.layout import PANEL

Store = Callable[[Expr, Expr, Callable[[Expr], Expr]], None]
"""store(row, o, value): what becomes of the outputs o + lane of a row; value(lane) is one of them."""


@dataclass(frozen=True)
class Matrix:
    """A packed matrix of a kernel.

    Attributes:
        weights, vectors: the buffers that it and its scales lie in.
        first: where its first panel begins.
        columns: inputs.
        scales: where its scales begin; None where it has none.
    """

    weights: Buffer
    vectors: Buffer
    first: int
    columns: int
    scales: int | None


def each_rows(count: Expr, rows: int, statement: Callable[[Expr, int], None]) -> None:
    """Emits statement(row, rows) for tiles of `rows` rows, and statement(row, 1) for each that is left."""
    with T.serial(count // rows) as tile:
        statement(tile * rows, rows)
    if rows > 1:
        with T.serial(count % rows) as rest:
            statement(count // rows * rows + rest, 1)


def product(matrix: Matrix, panel: Expr, x: Buffer, row: Expr, rows: int) -> list[Buffer]:
    """The sums over the inputs of `rows` rows of x from `row` on with a panel, before they are scaled."""
    sums = zeros(PANEL, rows)
    start = matrix.first + panel * (matrix.columns * PANEL)
    with T.serial(matrix.columns) as i, T.vectorized(PANEL) as lane:
        for r in range(rows):
            weight = T.cast(matrix.weights[start + i * PANEL + lane], "float32")
            T.buffer_store(sums[r], sums[r][lane] + x[row + r, i] * weight, [lane])
    return sums


def scaled(matrix: Matrix, panel: Expr, total: Buffer, lane: Expr) -> Expr:
    """A lane of a panel's sums, times the scale of its output."""
    if matrix.scales is None:
        return total[lane]
    return total[lane] * matrix.vectors[matrix.scales + panel * PANEL + lane]


def multiply(matrix: Matrix, panel: Expr, x: Buffer, rows: int, store: Store) -> None:
    """Emits store for the outputs of a panel, PANEL lanes of each row of x, `rows` rows at a time."""

    def of_rows(row: Expr, count: int) -> None:
        for r, total in enumerate(product(matrix, panel, x, row, count)):
            store(row + r, panel * PANEL, functools.partial(scaled, matrix, panel, total))

    each_rows(x.shape[0], rows, of_rows)


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


def multiply_gated(matrix: Matrix, pair: Expr, x: Buffer, rows: int, gate: Callable[[Expr], Expr], to: Buffer) -> None:
    """to <- gate(of one panel) * (of the next), of each row of x, `rows` rows at a time."""

    def of_rows(row: Expr, count: int) -> None:
        opening = product(matrix, pair * 2, x, row, count)
        passing = product(matrix, pair * 2 + 1, x, row, count)
        for r in range(count):
            with T.vectorized(PANEL) as lane:
                opened = gate(scaled(matrix, pair * 2, opening[r], lane))
                value = opened * scaled(matrix, pair * 2 + 1, passing[r], lane)
                T.buffer_store(to, value, [row + r, pair * PANEL + lane])

    each_rows(x.shape[0], rows, of_rows)
