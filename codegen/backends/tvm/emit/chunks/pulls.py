"""Cotangents of what a tile writes, and of the scores that its readout and its residuals sum with."""

from __future__ import annotations

from collections.abc import Callable

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Buffer, Expr, extent
from codegen.backends.tvm.emit.products import Term, product, sums_of
from codegen.backends.tvm.emit.tile import Tile
from codegen.backends.tvm.emit.vectors import each_block
from codegen.schedules.tvm_fields import VECTORS_PER_ROW


def of_writes(
    tile: Tile,
    depth: int,
    scores: Buffer,
    dy_rows: Buffer,
    k_rows: Buffer,
    dS: Buffer,
    dX: Buffer,
    *read: tuple[Buffer, Buffer],
) -> None:
    """dX <- scores^T dY + K dS, of keys that are decayed to the tile's end.

    More that reads what is written comes in pairs, weights and the cotangents of what they give.
    """
    product(
        tile,
        tile.tokens,
        extent(dX, 1),
        _read_by(tile, scores, dy_rows),
        lambda s, d, x: T.buffer_store(dX, x, [s, d]),
        None,
        (depth, lambda s, i: k_rows[s, i], lambda i, d: dS[i, d]),
        *(_read_by(tile, *each) for each in read),
    )


def _read_by(tile: Tile, weights: Buffer, drows: Buffer) -> Term:
    return tile.tokens, lambda s, t: weights[t, s], lambda t, d: drows[t, d]


def of_residuals(tile: Tile, g: Buffer, met: Buffer, dX: Buffer, dz: Buffer) -> None:
    """dX_i <- dX_i + sum over t > i of met[t, i] dz_t, dz_i = -gamma_i dX_i: the system of `residuals`, back.

    Args:
        tile: sizes.
        g: step sizes.
        met: weights of the pairs of probes and keys.
        dX: cotangents of what is written, from its readout and the state's end; those in all.
        dz: the result, of z.
    """
    _substitute_back(tile, met, dX, dz, lambda t, x: T.float32(0) - g[t] * x)


def of_erasures(tile: Tile, met_erased: Buffer, dE: Buffer) -> None:
    """dE_i <- dE_i + sum over t > i of met_erased[t, i] dE_t: the system of `of_erasures` of what is written, back."""
    _substitute_back(tile, met_erased, dE, dE, lambda t, x: x)


def _substitute_back(tile: Tile, met: Buffer, dX: Buffer, given: Buffer, row_of: Callable[[Expr, Expr], Expr]) -> None:
    """dX_i <- dX_i + sum over t > i of met[t, i] given_t, given_i = row_of(i, dX_i), row after row from the last."""

    def columns(offset: Expr, block: int) -> None:
        """Emits the system at `block` columns from `offset` on, groups of rows from the last."""
        group = min(tile.tokens, max(1, tile.accumulators * tile.width // block))

        def rows(first: Expr, count: int) -> None:
            """Emits `count` rows from `first` on, each of which needs the later ones."""
            end = first + count
            later: Term = (
                lambda end: tile.tokens - end,
                lambda i, t: met[t + end, i],
                lambda t, d: given[t + end, d],
            )
            sums = sums_of(first, count, offset, block, (later,))
            for r in reversed(range(count)):
                x = sums[r]
                with T.vectorized(block) as lane:
                    d = offset + lane
                    for t in range(r + 1, count):
                        T.buffer_store(x, x[lane] + met[first + t, first + r] * sums[t][lane], [lane])
                    T.buffer_store(x, dX[first + r, d] + x[lane], [lane])
                    T.buffer_store(dX, x[lane], [first + r, d])
                    T.buffer_store(x, row_of(first + r, x[lane]), [lane])
                    T.buffer_store(given, x[lane], [first + r, d])

        whole = tile.tokens // group
        if tile.tokens % group:
            rows(whole * group, tile.tokens % group)
        with T.serial(whole) as back:
            rows((whole - 1 - back) * group, group)

    each_block(extent(dX, 1), VECTORS_PER_ROW * tile.width, columns)


def of_scores(tile: Tile, depth: int, rows: Buffer, X_cols: Buffer, G: Buffer) -> None:
    """G[t, s] <- rows_t . X_s, for all pairs of tokens."""
    product(
        tile,
        tile.tokens,
        tile.tokens,
        (depth, lambda t, d: rows[t, d], lambda d, s: X_cols[d, s]),
        lambda t, s, x: T.buffer_store(G, x, [t, s]),
    )


def of_rows(tile: Tile, depth: int, width: int, S: Buffer, cols: Buffer, to_cols: Buffer) -> None:
    """to_cols[i, t] <- the sum over d of S[i, d] cols[d, t]."""
    product(
        tile,
        depth,
        tile.tokens,
        (width, lambda i, d: S[i, d], lambda d, t: cols[d, t]),
        lambda i, t, x: T.buffer_store(to_cols, x, [i, t]),
    )
