"""X: what a tile writes to the memory, a row for each token, times its key."""

from __future__ import annotations

from collections.abc import Callable

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Buffer, Expr, extent
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

    Forward substitution, whose earlier rows are a product; those of a group of rows stay in registers.

    Args:
        tile: sizes.
        g: step sizes.
        depth: D_k.
        S: the state at the tile's start, transposed.
        p_rows: probes, decayed from the tile's start.
        met: weights of the pairs of probes and keys.
        X: v, and the result.
    """

    def columns(offset: Expr, block: int) -> None:
        group = min(tile.tokens, max(1, tile.accumulators * tile.width // block))
        with T.serial(tile.tokens // group) as i:
            _solve_group(i * group, group, offset, block, g, depth, S, p_rows, met, X)
        if tile.tokens % group:
            row = tile.tokens // group * group
            _solve_group(row, tile.tokens % group, offset, block, g, depth, S, p_rows, met, X)

    each_block(extent(X, 1), VECTORS_PER_ROW * tile.width, columns)


def _solve_group(
    row: Expr,
    group: int,
    offset: Expr,
    block: int,
    g: Buffer,
    depth: int,
    S: Buffer,
    p_rows: Buffer,
    met: Buffer,
    X: Buffer,
) -> None:
    """Rows of X from `row` on, `block` lanes from `offset` on."""
    sums = [T.alloc_buffer((block,), "float32") for _ in range(group)]
    zero = T.float32(0)
    with T.vectorized(block) as lane:
        for x in sums:
            T.buffer_store(x, zero, [lane])
    with T.serial(depth) as i, T.vectorized(block) as lane:
        for r, x in enumerate(sums):
            T.buffer_store(x, x[lane] + p_rows[row + r, i] * S[i, offset + lane], [lane])
    with T.serial(row) as i, T.vectorized(block) as lane:
        for r, x in enumerate(sums):
            T.buffer_store(x, x[lane] + met[row + r, i] * X[i, offset + lane], [lane])
    for r, x in enumerate(sums):
        with T.vectorized(block) as lane:
            for earlier in range(r):
                T.buffer_store(x, x[lane] + met[row + r, row + earlier] * sums[earlier][lane], [lane])
            T.buffer_store(x, g[row + r] * (X[row + r, offset + lane] - x[lane]), [lane])
            T.buffer_store(X, x[lane], [row + r, offset + lane])
