"""Products of matrices in shared memory by tensor cores: what `multiply_adds` has, under the same names.

A warp sums blocks of 16 rows and four times `Tile.columns` columns. `mma` takes 16 numbers of each row and column at a
time, and says which of them, and which sums, are whose (PTX ISA, "Matrix Fragments for mma.m16n8k16"): a lane has the
rows lane / 4 and eight below, of eight columns the pair 2 (lane % 4), and of the depth that pair and the one eight
after it; of the second operand it has the column lane / 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Buffer, Expr
from codegen.backends.tvm_cuda.emit import mma
from codegen.backends.tvm_cuda.emit.sums import Compute, Outputs, Store
from codegen.backends.tvm_cuda.emit.threads import register
from codegen.backends.tvm_cuda.emit.tile import Tile
from codegen.schedules.cuda_block import MMA_ROWS

_LANES, _EIGHT = 32, 8

Number = Callable[[int, int, int], Expr]
"""A lane's number of an operand by the half of the depth, which of its rows or columns, and the place in a pair."""


def product(tile: Tile, rows: int, columns: int, compute: Compute, store: Store, *, adjacent: bool) -> None:
    """Emits store(row, column, sum) for all outputs; compute(sums, outputs) adds up those of one lane.

    Whose columns are adjacent is for `mma` to say.
    """

    def outputs(i: Expr, j: Expr) -> None:
        group, pair = tile.thread % _LANES // 4, tile.thread % 4 * 2
        of_row = [i * MMA_ROWS + group, i * MMA_ROWS + group + _EIGHT]
        eights = [j * 4 * tile.columns + _EIGHT * c for c in range(tile.columns // 2)]
        sums = register(tile.rows * tile.columns)
        for place in range(tile.rows * tile.columns):
            T.buffer_store(sums, T.float32(0), [place])
        compute(sums, Outputs(of_row, [first + group for first in eights], pair))
        for r, row in enumerate(of_row):
            for c, first in enumerate(eights):
                for p in range(2):
                    store(row, first + pair + p, sums[r * tile.columns + 2 * c + p])

    _each(tile, rows // MMA_ROWS, columns // (4 * tile.columns), outputs)


def _each(tile: Tile, rows: int, columns: int, statement: Callable[[Expr, Expr], None]) -> None:
    """Emits statement(i, j) for all blocks of outputs, which the warps share out."""
    blocks, warps = rows * columns, tile.threads // _LANES
    with T.serial((blocks + warps - 1) // warps) as turn:
        block = turn * warps + tile.thread // _LANES
        with T.If(block < blocks), T.Then():
            statement(block // columns, block % columns)


def add_by_rows(tile: Tile, sums: Buffer, at: Outputs, X: Buffer, Y: Buffer, depth: int) -> None:
    """Emits sums += X Y^T: both are read along their rows."""
    with T.serial(depth // MMA_ROWS) as b:
        _multiply(tile, sums, _own_pairs(X, at.rows, b, at.pair), _own_pairs(Y, at.columns, b, at.pair))


def add_by_columns(tile: Tile, sums: Buffer, at: Outputs, X: Buffer, Y: Buffer, depth: Expr, *, adjacent: bool) -> None:
    """Emits sums += X Y; depth may be an expression, a multiple of sixteen."""
    with T.serial(depth // MMA_ROWS) as b:
        _multiply(tile, sums, _own_pairs(X, at.rows, b, at.pair), _of_tokens(Y, at.columns, b, at.pair))


def add_by_tokens(tile: Tile, sums: Buffer, at: Outputs, X: Buffer, Y: Buffer, depth: int) -> None:
    """Emits sums += X^T Y."""
    with T.serial(depth // MMA_ROWS) as b:
        _multiply(tile, sums, _of_tokens(X, at.rows, b, at.pair), _of_tokens(Y, at.columns, b, at.pair))


def up_to(at: Outputs) -> Expr:
    """How many tokens the last of the rows may see, rounded up to sixteen; the same for all lanes of a warp."""
    return at.rows[0] // MMA_ROWS * MMA_ROWS + MMA_ROWS


def _multiply(tile: Tile, sums: Buffer, rows: Number, columns: Number) -> None:
    """Emits sums += a b^T of a lane's numbers."""
    a = [rows(half, r, p) for half in range(2) for r in range(tile.rows) for p in range(2)]
    for c in range(tile.columns // 2):
        b = [columns(half, c, p) for half in range(2) for p in range(2)]
        places = [T.address_of(sums[r * tile.columns + 2 * c]) for r in range(tile.rows)]
        T.evaluate(T.cuda.func_call(mma.name(tile.dots), *places, *a, *b, source_code=mma.source(tile.dots)))


def _own_pairs(X: Buffer, rows: Sequence[Expr], b: Expr, pair: Expr) -> Number:
    """Emits the loads of a lane's pairs in rows of X."""
    pairs = [[register(2) for _ in rows] for _ in range(2)]
    for half in range(2):
        for r, row in enumerate(rows):
            with T.vectorized(2) as p:
                T.buffer_store(pairs[half][r], X[row, MMA_ROWS * b + _EIGHT * half + pair + p], [p])
    return lambda half, r, p: pairs[half][r][p]


def _of_tokens(X: Buffer, columns: Sequence[Expr], b: Expr, pair: Expr) -> Number:
    """A lane's numbers in columns of X."""
    return lambda half, c, p: X[MMA_ROWS * b + _EIGHT * half + pair + p, columns[c]]
