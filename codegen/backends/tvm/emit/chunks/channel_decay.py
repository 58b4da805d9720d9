"""A tile of a rule whose forget gate is a number for each column of S, a sub-chunk of one vector's tokens.

The functions are those of `scalar_decay`, where their arguments are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm.script import tirx as T

from codegen.backends.tvm.emit.chunks.triangle import masked
from codegen.backends.tvm.emit.expressions import Buffer, Expr, extent, forget_gate
from codegen.backends.tvm.emit.tile import Tile
from codegen.backends.tvm.emit.vectors import each_feature, fill, registers, zeros


@dataclass(frozen=True)
class Gates:
    """The buffers of a tile's gates.

    Attributes:
        beta: [tokens, D_k], of each token and column.
        end: [D_k], exp(L_C).
    """

    beta: Buffer
    end: Buffer


def load(tile: Tile, log_decay: Buffer, first: Expr, valid: Expr, h: Expr, gate: Gates) -> None:
    """The gates of the tile's tokens, 1 past its end, and their products."""
    width, features = tile.width, extent(log_decay, 2)
    with T.serial(valid) as t:
        each_feature(
            width, features, lambda i: T.buffer_store(gate.beta, forget_gate(log_decay[first + t, h, i]), [t, i])
        )
    with T.serial(tile.tokens - valid) as t:
        each_feature(width, features, lambda i: T.buffer_store(gate.beta, T.float32(1), [valid + t, i]))
    with T.serial(extent(gate.beta, 1) // width) as b:
        run = T.alloc_buffer((width,), "float32")
        fill(run, T.float32(1))
        with T.serial(tile.tokens) as t, T.vectorized(width) as lane:
            T.buffer_store(run, run[lane] * gate.beta[t, b * width + lane], [lane])
        with T.vectorized(width) as lane:
            T.buffer_store(gate.end, run[lane], [b * width + lane])


def pairs(
    tile: Tile, gate: Gates, depth: int, left_rows: Buffer, k_cols: Buffer, scores: Buffer, after: bool, diagonal: bool
) -> None:
    """scores[t, s] <- the sum over i of exp(L_ti - L_si) left_ti k_si for s < t, and s = t with the diagonal; else 0.

    Keys lie in the lanes of a register, and decay from each token to the next.
    """
    sums = zeros(tile.width, tile.tokens)
    (keys,) = registers(tile.width, 1)
    with T.serial(depth) as i:
        with T.vectorized(tile.width) as lane:
            T.buffer_store(keys, k_cols[i, lane], [lane])
        for t, x in enumerate(sums):
            if not after:
                _add(x, left_rows[t, i], keys)
            with T.vectorized(tile.width) as lane:
                decayed = T.Select(lane < t, keys[lane] * gate.beta[t, i], keys[lane])
                T.buffer_store(keys, decayed, [lane])
            if after:
                _add(x, left_rows[t, i], keys)
    for t, x in enumerate(sums):
        with T.vectorized(tile.width) as lane:
            T.buffer_store(scores, masked(t, lane, x[lane], diagonal), [t, lane])


def _add(x: Buffer, factor: Expr, keys: Buffer) -> None:
    with T.vectorized(extent(x, 0)) as lane:
        T.buffer_store(x, x[lane] + factor * keys[lane], [lane])


def from_start(tile: Tile, gate: Gates, rows: Buffer, after: bool) -> None:
    """rows[t, i] <- exp(L_ti) rows[t, i], with L_(t-1) unless `after`."""
    _scale(tile, gate, rows, lambda t: t, after)


def to_end(tile: Tile, gate: Gates, rows: Buffer) -> None:
    """rows[s, i] <- exp(L_Ci - L_si) rows[s, i]."""
    _scale(tile, gate, rows, lambda t: tile.tokens - 1 - t, False)


def _scale(tile: Tile, gate: Gates, rows: Buffer, token: Callable[[Expr], Expr], after: bool) -> None:
    """Rows, token by token, times the product of the gates so far, of their own one too if `after`."""
    width = tile.width
    with T.serial(extent(rows, 1) // width) as b:
        run = T.alloc_buffer((width,), "float32")
        fill(run, T.float32(1))
        with T.serial(tile.tokens) as step, T.vectorized(width) as lane:
            at = (token(step), b * width + lane)
            if after:
                T.buffer_store(run, run[lane] * gate.beta[at], [lane])
            T.buffer_store(rows, rows[at] * run[lane], list(at))
            if not after:
                T.buffer_store(run, run[lane] * gate.beta[at], [lane])


def kept(gate: Gates, i: Expr) -> Expr:
    """exp(L_C) of column i of the state."""
    return gate.end[i]
