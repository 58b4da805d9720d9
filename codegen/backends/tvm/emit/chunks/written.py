"""X: what a tile writes to the memory, a row for each token, times its key."""

from __future__ import annotations

from collections.abc import Callable

from tvm.script import tirx as T

from codegen.backends.tvm.emit.chunks.rows import scale_rows
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


def scale(tile: Tile, rows: Buffer, g: Buffer) -> None:
    """rows[t, :] <- gamma_t rows[t, :]."""
    scale_rows(tile, rows, lambda t: g[t])


def scale_columns(tile: Tile, met: Buffer, g: Buffer) -> None:
    """met[t, i] <- gamma_i met[t, i]."""
    with T.serial(tile.tokens) as t, T.vectorized(tile.tokens) as i:
        T.buffer_store(met, met[t, i] * g[i], [t, i])


def residuals(tile: Tile, depth: int, S: Buffer, p_rows: Buffer, met: Buffer, R: Buffer) -> None:
    """R_t <- R_t - p_t S - sum over i < t of met[t, i] R_i, where R holds v: v - z of a squared loss.

    Args:
        tile: sizes.
        depth: D_k.
        S: the state at the tile's start, transposed.
        p_rows: probes, decayed from the tile's start.
        met: weights of the pairs of probes and keys, times the step sizes of the keys' tokens.
        R: v, and the result.
    """
    known = ((depth, lambda t, i: p_rows[t, i], lambda i, d: S[i, d]),)
    _substitute(tile, known, met, R, lambda t, d, x: R[t, d] - x)


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
        """Emits the system at `block` columns from `offset` on, groups of rows in order."""
        group = min(tile.tokens, max(1, tile.accumulators * tile.width // block))

        def rows(first: Expr, count: int) -> None:
            """Emits `count` rows from `first` on, each of which needs the earlier ones."""
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
