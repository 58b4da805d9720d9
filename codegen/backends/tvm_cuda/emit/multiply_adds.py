"""Products of matrices in shared memory by multiply-adds.

A thread sums some rows and columns of outputs in registers, so that a number which it reads enters several products.
What it reads is four numbers at a time wherever those lie side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Buffer, Expr
from codegen.backends.tvm_cuda.emit.sums import Compute, Outputs, Store
from codegen.backends.tvm_cuda.emit.threads import register
from codegen.backends.tvm_cuda.emit.tile import Tile
from codegen.schedules.cuda_block import WIDTH


def product(tile: Tile, rows: int, columns: int, compute: Compute, store: Store, *, adjacent: bool) -> None:
    """Emits store(row, column, sum) for all outputs; compute(sums, outputs) adds up those of one thread.

    A thread's columns are adjacent where it reads them side by side; otherwise they lie a whole stride apart, and those
    of neighbouring threads side by side, which keeps them in different banks.
    """
    stride = columns // tile.columns

    def outputs(i: Expr, j: Expr) -> None:
        of_row = [i * tile.rows + r for r in range(tile.rows)]
        of_column = [j * tile.columns + c if adjacent else j + c * stride for c in range(tile.columns)]
        sums = register(tile.rows * tile.columns)
        for place in range(tile.rows * tile.columns):
            T.buffer_store(sums, T.float32(0), [place])
        compute(sums, Outputs(of_row, of_column))
        for r, row in enumerate(of_row):
            for c, column in enumerate(of_column):
                store(row, column, sums[r * tile.columns + c])

    _each(tile, rows // tile.rows, stride, outputs)


def _each(tile: Tile, rows: int, columns: int, statement: Callable[[Expr, Expr], None]) -> None:
    """Emits statement(i, j) for all groups of outputs, which the threads share out."""
    groups = rows * columns
    with T.serial((groups + tile.threads - 1) // tile.threads) as turn:
        group = turn * tile.threads + tile.thread
        with T.If(group < groups), T.Then():
            statement(group // columns, group % columns)


def add_by_rows(tile: Tile, sums: Buffer, at: Outputs, X: Buffer, Y: Buffer, depth: int) -> None:
    """Emits sums += X Y^T: both are read along their rows."""
    x = [register(WIDTH) for _ in at.rows]
    y = [register(WIDTH) for _ in at.columns]
    with T.serial(depth // WIDTH) as b:
        for r, row in enumerate(at.rows):
            _load_side_by_side(x[r], X, row, WIDTH * b)
        for c, column in enumerate(at.columns):
            _load_side_by_side(y[c], Y, column, WIDTH * b)
        for k in range(WIDTH):
            _add_outer(sums, [each[k] for each in x], [each[k] for each in y])


def add_by_columns(tile: Tile, sums: Buffer, at: Outputs, X: Buffer, Y: Buffer, depth: Expr, *, adjacent: bool) -> None:
    """Emits sums += X Y; depth may be an expression, a multiple of four."""
    x, y = [register(WIDTH) for _ in at.rows], register(WIDTH)
    with T.serial(depth // WIDTH) as b:
        for r, row in enumerate(at.rows):
            _load_side_by_side(x[r], X, row, WIDTH * b)
        for k in range(WIDTH):
            if adjacent:
                _load_side_by_side(y, Y, WIDTH * b + k, at.columns[0])
            else:
                for c, column in enumerate(at.columns):
                    T.buffer_store(y, Y[WIDTH * b + k, column], [c])
            _add_outer(sums, [each[k] for each in x], [y[c] for c in range(tile.columns)])


def add_by_tokens(tile: Tile, sums: Buffer, at: Outputs, X: Buffer, Y: Buffer, depth: int) -> None:
    """Emits sums += X^T Y: both are read along the adjacent rows and columns."""
    x, y = register(tile.rows), register(tile.columns)
    with T.serial(depth) as t:
        _load_side_by_side(x, X, t, at.rows[0], tile.rows)
        _load_side_by_side(y, Y, t, at.columns[0])
        _add_outer(sums, [x[r] for r in range(tile.rows)], [y[c] for c in range(tile.columns)])


def up_to(at: Outputs) -> Expr:
    """How many tokens the last of the rows may see, rounded up to four."""
    return (at.rows[-1] + WIDTH) // WIDTH * WIDTH


def _add_outer(sums: Buffer, x: Sequence[Expr], y: Sequence[Expr]) -> None:
    """Emits sums[r, c] += x[r] y[c]."""
    for r, left in enumerate(x):
        for c, right in enumerate(y):
            place = r * len(y) + c
            T.buffer_store(sums, sums[place] + left * right, [place])


def _load_side_by_side(x: Buffer, X: Buffer, row: Expr, column: Expr, count: int = WIDTH) -> None:
    """Emits x <- `count` numbers of a row."""
    with T.vectorized(count) as lane:
        T.buffer_store(x, X[row, column + lane], [lane])
