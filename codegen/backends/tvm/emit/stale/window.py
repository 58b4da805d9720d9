"""The pairs of u and w that a window carries: after the tile's own, the oldest first."""

from __future__ import annotations

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Buffer, Expr, extent
from codegen.backends.tvm.emit.tile import Tile
from codegen.backends.tvm.emit.vectors import each_feature


def load(tile: Tile, U: Buffer, w_rows: Buffer, window_u: Buffer, window_w: Buffer, n: Expr, h: Expr) -> None:
    """The carried pairs <- those of a sequence."""
    carried = extent(window_u, 2)
    with T.serial(carried) as j:
        with T.serial(tile.slots) as m:
            T.buffer_store(U, window_u[n, h, j, m], [m, tile.tokens + j])
        with T.serial(extent(w_rows, 1)) as d:
            T.buffer_store(w_rows, T.float32(0), [tile.tokens + j, d])
        each_feature(
            tile.width,
            extent(window_w, 3),
            lambda d: T.buffer_store(w_rows, window_w[n, h, j, d], [tile.tokens + j, d]),
        )


def store(tile: Tile, window_u: Buffer, window_w: Buffer, U: Buffer, w_rows: Buffer, n: Expr, h: Expr) -> None:
    """The pairs of a sequence <- the carried ones."""
    carried = extent(window_u, 2)
    with T.serial(carried) as j:
        with T.serial(tile.slots) as m:
            T.buffer_store(window_u, U[m, tile.tokens + j], [n, h, j, m])
        each_feature(
            tile.width,
            extent(window_w, 3),
            lambda d: T.buffer_store(window_w, w_rows[tile.tokens + j, d], [n, h, j, d]),
        )


def weigh(tile: Tile, U: Buffer, om: Buffer) -> None:
    """U[:, t] <- om_t U[:, t] of the tile's own pairs."""
    with T.serial(tile.slots) as m, T.vectorized(tile.tokens) as t:
        T.buffer_store(U, om[t] * U[m, t], [m, t])


def carry(tile: Tile, U: Buffer, w_rows: Buffer, carried: int, valid: Expr) -> None:
    """The carried pairs <- the last of them and of the tile's first `valid` ones, in place."""
    with T.serial(carried) as j:
        place = valid + j
        source = T.Select(place < carried, tile.tokens + place, place - carried)
        with T.serial(tile.slots) as m:
            T.buffer_store(U, U[m, source], [m, tile.tokens + j])
        with T.vectorized(extent(w_rows, 1)) as d:
            T.buffer_store(w_rows, w_rows[source, d], [tile.tokens + j, d])
