"""The memory of a tile's tokens: its state, transposed to [D_k, D_v], is read, and moves on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tvm.script import tirx as T

from codegen.backends.tvm.emit import states
from codegen.backends.tvm.emit.chunks import rows
from codegen.backends.tvm.emit.expressions import Buffer, Expr, extent
from codegen.backends.tvm.emit.products import Term, product
from codegen.backends.tvm.emit.tile import Tile
from codegen.backends.tvm.emit.transpose import transpose

Gates = TypeVar("Gates")
"""Of one of the modules for a decay."""


def load(tile: Tile, S: Buffer, S_rows: Buffer, tensor: Buffer, index: Expr, h: Expr) -> None:
    """S <- a state of a tensor, transposed."""
    states.load(tile, S_rows, tensor, index, h)
    transpose(tile, S, S_rows)


def store(tile: Tile, tensor: Buffer, S: Buffer, S_rows: Buffer, index: Expr, h: Expr) -> None:
    """A state of a tensor <- S, transposed."""
    transpose(tile, S_rows, S)
    states.store(tile, tensor, S_rows, index, h)


def keep(tile: Tile, kept: Buffer, j: Expr, X: Buffer) -> None:
    """kept[j] <- X, a state or rows of a tile."""
    width = tile.width
    with T.serial(extent(X, 0)) as i, T.serial(extent(X, 1) // width) as b, T.vectorized(width) as lane:
        T.buffer_store(kept, X[i, b * width + lane], [j, i, b * width + lane])


def take(tile: Tile, X: Buffer, kept: Buffer, j: Expr) -> None:
    """X <- kept[j]."""
    rows.each(tile, X, lambda i, d: kept[j, i, d])


def read(tile: Tile, depth: int, S: Buffer, q_rows: Buffer, y_rows: Buffer, *writes: tuple[Buffer, Buffer]) -> None:
    """Y <- Q S + the sum of scores X over pairs of `writes`, of queries that are decayed from the tile's start."""
    product(
        tile,
        tile.tokens,
        extent(y_rows, 1),
        (depth, lambda t, i: q_rows[t, i], lambda i, d: S[i, d]),
        lambda t, d, x: T.buffer_store(y_rows, x, [t, d]),
        None,
        *(_earlier(scores, X) for scores, X in writes),
    )


def _earlier(scores: Buffer, X: Buffer) -> Term:
    return lambda end: end, lambda t, s: scores[t, s], lambda s, d: X[s, d]


def move(
    tile: Tile,
    depth: int,
    S: Buffer,
    gate: Gates,
    kept: Callable[[Gates, Expr], Expr],
    *writes: tuple[Buffer, Buffer],
) -> None:
    """S[i, :] <- kept(gate, i) S[i, :] + the sum of K^T X over pairs of `writes`, of keys decayed to the tile's end."""
    first, *more = (_along(tile, *each) for each in writes)
    product(
        tile,
        depth,
        extent(S, 1),
        first,
        lambda i, d, x: T.buffer_store(S, kept(gate, i) * S[i, d] + x, [i, d]),
        None,
        *more,
    )


def _along(tile: Tile, k_rows: Buffer, X: Buffer) -> Term:
    return tile.tokens, lambda i, s: k_rows[s, i], lambda s, d: X[s, d]
