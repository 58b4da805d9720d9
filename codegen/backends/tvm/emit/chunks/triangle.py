"""Weights of the pairs (t, s) of a tile's tokens, below its diagonal."""

from __future__ import annotations

from collections.abc import Callable

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Buffer, Expr, extent
from codegen.backends.tvm.emit.products import product
from codegen.backends.tvm.emit.tile import Tile


def products_of_pairs(
    tile: Tile,
    depth: int,
    left_rows: Buffer,
    k_cols: Buffer,
    scores: Buffer,
    weight: Callable[[Expr, Expr], Expr],
    diagonal: bool,
) -> None:
    """scores[t, s] <- (left_t . k_s) weight(t, s) for s <= t, or s < t without the diagonal; else 0.

    Blocks above the diagonal, which no readout sums, are left as they are.
    """
    for block in range(tile.vectors):
        _rows_of_pairs(tile, block * tile.width, depth, left_rows, k_cols, scores, weight, diagonal)


def _rows_of_pairs(
    tile: Tile,
    first: int,
    depth: int,
    left_rows: Buffer,
    k_cols: Buffer,
    scores: Buffer,
    weight: Callable[[Expr, Expr], Expr],
    diagonal: bool,
) -> None:
    """The pairs of one vector's tokens from `first` on."""
    product(
        tile,
        tile.width,
        first + tile.width,
        (depth, lambda r, i: left_rows[first + r, i], lambda i, s: k_cols[i, s]),
        lambda r, s, x: T.buffer_store(
            scores, masked(first + r, s, x * weight(first + r, s), diagonal), [first + r, s]
        ),
    )


def masked(t: Expr, s: Expr, x: Expr, diagonal: bool) -> Expr:
    """x where s <= t, or s < t without the diagonal; else 0."""
    return T.Select(s <= t if diagonal else s < t, x, T.float32(0))


def pull_products_of_pairs(
    tile: Tile,
    G: Buffer,
    weight: Callable[[Expr, Expr], Expr],
    diagonal: bool,
    left_rows: Buffer,
    k_rows: Buffer,
    dleft_rows: Buffer,
    dk_rows: Buffer,
) -> None:
    """Adds what `products_of_pairs` gives back to its rows; G is the cotangent of the scores, and is overwritten."""
    with T.serial(tile.tokens) as t, T.vectorized(tile.tokens) as s:
        T.buffer_store(G, masked(t, s, G[t, s] * weight(t, s), diagonal), [t, s])
    product(
        tile,
        tile.tokens,
        extent(k_rows, 1),
        (lambda end: end, lambda t, s: G[t, s], lambda s, i: k_rows[s, i]),
        lambda t, i, x: T.buffer_store(dleft_rows, dleft_rows[t, i] + x, [t, i]),
    )
    product(
        tile,
        tile.tokens,
        extent(k_rows, 1),
        (tile.tokens, lambda s, t: G[t, s], lambda t, i: left_rows[t, i]),
        lambda s, i, x: T.buffer_store(dk_rows, dk_rows[s, i] + x, [s, i]),
    )
