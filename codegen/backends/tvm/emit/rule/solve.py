"""Systems of linear equations, by Gaussian elimination in scratch."""

from __future__ import annotations

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Buffer, extent
from codegen.backends.tvm.emit.rule.values import Matrix, pieces
from codegen.backends.tvm.emit.vectors import sum_of_lanes, zeros


def solve(x: Buffer, S: Matrix, diagonal: Buffer, b: Buffer, left: Buffer, transposed: bool) -> None:
    """x <- (S + diag(diagonal))^-1 b, or with S transposed, S symmetric and positive, so that no pivot is sought.

    `left` is scratch, [n, n in whole vectors]: what is left of the matrix.
    """
    width, n = extent(x, 1), S.rows
    vectors = extent(left, 1) // width
    with T.serial(n) as i, T.serial(n) as j:
        T.buffer_store(left, S.at(j, i) if transposed else S.at(i, j), [i, j])
    with T.serial(n) as i, T.serial(extent(left, 1) - n) as j:
        # What pads a row takes part in the elimination, where a NaN that an earlier program left would only cost time.
        T.buffer_store(left, T.float32(0), [i, n + j])
    with T.serial(n) as i:
        T.buffer_store(left, left[i, i] + diagonal[i // width, i % width], [i, i])
        T.buffer_store(x, b[i // width, i % width], [i // width, i % width])
    factor = T.alloc_buffer((1,), "float32")
    inverse = T.alloc_buffer((1,), "float32")
    with T.serial(n) as p:
        T.buffer_store(inverse, T.float32(1) / left[p, p], [0])
        with T.serial(p + 1, n) as i:
            T.buffer_store(factor, left[i, p] * inverse[0], [0])
            with T.serial(p // width, vectors) as v, T.vectorized(width) as lane:
                at = v * width + lane
                T.buffer_store(left, left[i, at] - factor[0] * left[p, at], [i, at])
            vector, inside = i // width, i % width
            moved = x[vector, inside] - factor[0] * x[p // width, p % width]
            T.buffer_store(x, moved, [vector, inside])
    _substitute(x, left, n)


def _substitute(x: Buffer, left: Buffer, n: int) -> None:
    """x of an upper triangle, from the last row on."""
    width = extent(x, 1)
    with T.serial(n) as back:
        i = n - 1 - back
        vector, inside = i // width, i % width
        (total,) = zeros(width, 1)
        for piece in pieces(width, n):
            past = T.Select(
                piece.index > (i if piece.lanes == 1 else T.Broadcast(i, piece.lanes)),
                left[i, piece.index] * x[piece.v, piece.inside],
                piece.vector(T.float32(0)),
            )
            T.buffer_store(total, total[piece.inside] + past, [piece.inside])
        sum_of_lanes(total)
        T.buffer_store(x, (x[vector, inside] - total[0]) / left[i, i], [vector, inside])
