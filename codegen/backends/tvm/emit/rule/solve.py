"""Systems of linear equations with a symmetric matrix, A = L D L^T, by elimination in scratch."""

from __future__ import annotations

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Buffer, Expr, extent
from codegen.backends.tvm.emit.rule.values import Matrix
from codegen.backends.tvm.emit.vectors import registers


def solve(x: Buffer, S: Matrix, diagonal: Buffer, b: Buffer, left: Buffer, transposed: bool) -> None:
    """x <- (S + diag(diagonal))^-1 b, or with S transposed, S symmetric and positive, so that no pivot is sought.

    `left` is scratch, [n, n in whole vectors]: from the diagonal on what is left of the matrix, before it L.
    """
    width, n = extent(x, 1), S.rows
    with T.serial(n) as i, T.serial(n) as j:
        T.buffer_store(left, S.at(j, i) if transposed else S.at(i, j), [i, j])
    with T.serial(n) as i, T.serial(extent(left, 1) - n) as j:
        # What pads a row takes part in the elimination, where a NaN that an earlier program left would only cost time.
        T.buffer_store(left, T.float32(0), [i, n + j])
    with T.serial(n) as i:
        T.buffer_store(left, left[i, i] + diagonal[i // width, i % width], [i, i])
        T.buffer_store(x, b[i // width, i % width], [i // width, i % width])
    inverses = T.alloc_buffer((extent(x, 0), width), "float32")
    with T.serial(n) as p:
        _eliminate(x, left, inverses, n, p)
    with T.serial(extent(x, 0)) as v, T.vectorized(width) as lane:
        T.buffer_store(x, x[v, lane] * inverses[v, lane], [v, lane])
    _substitute(x, left, n)


def _eliminate(x: Buffer, left: Buffer, inverses: Buffer, n: int, p: Expr) -> None:
    """Rows after p lose their multiples of row p, in the matrix and in x; they are column p of L."""
    width = extent(x, 1)
    vectors = extent(left, 1) // width
    factor, inverse = T.alloc_buffer((1,), "float32"), T.alloc_buffer((1,), "float32")
    T.buffer_store(inverse, T.float32(1) / left[p, p], [0])
    T.buffer_store(inverses, inverse[0], [p // width, p % width])
    row = registers(width, vectors)
    for v, part in enumerate(row):
        with T.vectorized(width) as lane:
            at = v * width + lane
            T.buffer_store(part, T.Select(at > p, left[p, at], T.float32(0)), [lane])
    # A loop for each vector of rows, so that how many vectors a row has is known when it is compiled.
    for first in range(vectors):
        with T.serial(T.max(p + 1, first * width), min(n, (first + 1) * width)) as i:
            T.buffer_store(factor, left[p, i] * inverse[0], [0])
            for v in range(first, vectors):
                with T.vectorized(width) as lane:
                    at = v * width + lane
                    T.buffer_store(left, left[i, at] - factor[0] * row[v][lane], [i, at])
            T.buffer_store(left, factor[0], [i, p])
    T.buffer_store(factor, inverse[0] * x[p // width, p % width], [0])
    for v, part in enumerate(row):
        with T.vectorized(width) as lane:
            T.buffer_store(x, x[v, lane] - factor[0] * part[lane], [v, lane])


def _substitute(x: Buffer, left: Buffer, n: int) -> None:
    """x <- L^-T x: from the last one on, each entry is known when those before it lose its multiples."""
    width = extent(x, 1)
    known = T.alloc_buffer((1,), "float32")
    for last in reversed(range(extent(x, 0))):
        with T.serial(min(n - last * width, width)) as back:
            i = min(n, (last + 1) * width) - 1 - back
            T.buffer_store(known, x[last, i - last * width], [0])
            for v in range(last + 1):
                with T.vectorized(width) as lane:
                    at = v * width + lane
                    L = left[i, at] if v < last else T.Select(at < i, left[i, at], T.float32(0))
                    T.buffer_store(x, x[v, lane] - known[0] * L, [v, lane])
