"""X: what a tile writes to the memory, a row for each token, times its key."""

from __future__ import annotations

from collections.abc import Callable

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Buffer, Expr, extent
from codegen.backends.tvm.emit.products import Term, sums_of
from codegen.backends.tvm.emit.tile import Tile
from codegen.backends.tvm.emit.vectors import each_block
from codegen.schedules.tvm_fields import VECTORS_PER_ROW


def load_steps(tile: Tile, step_size: Buffer, first: Expr, valid: Expr, h: Expr, g: Buffer) -> None:
    """g <- the step sizes of the tile's tokens, [heads] or [tokens, heads]; 0 past its end."""
    with T.vectorized(tile.tokens) as lane:
        T.buffer_store(g, T.float32(0), [lane])
    with T.serial(valid) as t:
        T.buffer_store(g, step_size[h] if len(step_size.shape) == 1 else step_size[first + t, h], [t])


def scale_rows(tile: Tile, rows: Buffer, factor: Callable[[Expr], Expr]) -> None:
    """rows[t, :] <- factor(t) rows[t, :]."""
    vectors = extent(rows, 1) // tile.width
    with T.serial(tile.tokens) as t, T.serial(vectors) as b, T.vectorized(tile.width) as lane:
        T.buffer_store(rows, rows[t, b * tile.width + lane] * factor(t), [t, b * tile.width + lane])


def of_values(tile: Tile, g: Buffer, X: Buffer) -> None:
    """X <- gamma X, where X holds v: the writes of a Hebbian loss."""
    scale_rows(tile, X, lambda t: g[t])


def of_residuals(tile: Tile, g: Buffer, depth: int, S: Buffer, p_rows: Buffer, met: Buffer, X: Buffer) -> None:
    """X_t <- gamma_t (X_t - p_t S - sum over i < t of met[t, i] X_i), where X holds v: those of a squared loss.

    Args:
        tile: sizes.
        g: step sizes.
        depth: D_k.
        S: the state at the tile's start, transposed.
        p_rows: probes, decayed from the tile's start.
        met: weights of the pairs of probes and keys.
        X: v, and the result.
    """
    known = ((depth, lambda t, i: p_rows[t, i], lambda i, d: S[i, d]),)
    _substitute(tile, known, met, X, lambda t, d, x: g[t] * (X[t, d] - x))


def of_erasures(
    tile: Tile, depth: int, S: Buffer, a_rows: Buffer, met: Buffer, X: Buffer, met_erased: Buffer, E: Buffer
) -> None:
    """E_t <- a_t S + sum over i < t of (met[t, i] X_i + met_erased[t, i] E_i): what is added along b (RWKV-7).

    Args:
        tile: sizes.
        depth: D_k.
        S: the state at the tile's start, transposed.
        a_rows: a of the pairs that erase, decayed from the tile's start.
        met, met_erased: weights of the pairs of a and keys, and of a and b.
        X: what is written along keys.
        E: the result.
    """
    of_state = (depth, lambda t, i: a_rows[t, i], lambda i, d: S[i, d])
    of_writes = (lambda end: end, lambda t, i: met[t, i], lambda i, d: X[i, d])
    _substitute(tile, (of_state, of_writes), met_erased, E, lambda t, d, x: x)


def _substitute(
    tile: Tile,
    known: tuple[Term, ...],
    met: Buffer,
    X: Buffer,
    row_of: Callable[[Expr, Expr, Expr], Expr],
) -> None:
    """X_t <- row_of(t, d, x), x = the known terms + the sum over i < t of met[t, i] X_i, row after row.

    The rows before a group of rows are the last term of a product; those of the group stay in registers.
    """

    def columns(offset: Expr, block: int) -> None:
        group = min(tile.tokens, max(1, tile.accumulators * tile.width // block))

        def rows(first: Expr, count: int) -> None:
            before: Term = (lambda end: end - count, lambda t, i: met[t, i], lambda i, d: X[i, d])
            sums = sums_of(first, count, offset, block, (*known, before))
            for r, x in enumerate(sums):
                with T.vectorized(block) as lane:
                    for earlier in range(r):
                        T.buffer_store(x, x[lane] + met[first + r, first + earlier] * sums[earlier][lane], [lane])
                    T.buffer_store(x, row_of(first + r, offset + lane, x[lane]), [lane])
                    T.buffer_store(X, x[lane], [first + r, offset + lane])

        with T.serial(tile.tokens // group) as i:
            rows(i * group, group)
        if tile.tokens % group:
            rows(tile.tokens // group * group, tile.tokens % group)

    each_block(extent(X, 1), VECTORS_PER_ROW * tile.width, columns)
