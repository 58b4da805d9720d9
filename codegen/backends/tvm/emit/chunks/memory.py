"""The memory of a tile's tokens: its state, transposed to [D_k, D_v], is read, and moves on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tvm.script import tirx as T

from codegen.backends.tvm.emit import states
from codegen.backends.tvm.emit.expressions import Buffer, Expr, extent
from codegen.backends.tvm.emit.products import product
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


def read(tile: Tile, depth: int, S: Buffer, q_rows: Buffer, scores: Buffer, X: Buffer, y_rows: Buffer) -> None:
    """Y <- Q S + scores X, of queries that are decayed from the tile's start."""
    product(
        tile,
        tile.tokens,
        extent(y_rows, 1),
        (depth, lambda t, i: q_rows[t, i], lambda i, d: S[i, d]),
        lambda t, d, x: T.buffer_store(y_rows, x, [t, d]),
        lambda t, d: T.float32(1),
        (lambda end: end, lambda t, s: scores[t, s], lambda s, d: X[s, d]),
    )


def move(
    tile: Tile, depth: int, S: Buffer, k_rows: Buffer, X: Buffer, gate: Gates, kept: Callable[[Gates, Expr], Expr]
) -> None:
    """S[i, :] <- kept(gate, i) S[i, :] + (K^T X)[i, :], of keys that are decayed to the tile's end."""
    product(
        tile,
        depth,
        extent(S, 1),
        (tile.tokens, lambda i, s: k_rows[s, i], lambda s, d: X[s, d]),
        lambda i, d, x: T.buffer_store(S, kept(gate, i) * S[i, d] + x, [i, d]),
    )
