"""Gates of a tile: beta, the forget gate; gamma, the step size; Omega[t, s] = exp(L_t - L_s) for s <= t, else 0."""

from __future__ import annotations

from dataclasses import dataclass

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Buffer, Expr, forget_gate
from codegen.backends.tvm.emit.tile import Tile


@dataclass(frozen=True)
class Gates:
    """The buffers of a tile's gates.

    Attributes:
        beta: of each token.
        g: gamma of each token.
        start: exp(L_t), from the tile's first state.
        decay: Omega.
        decay_cols: its transpose.
    """

    beta: Buffer
    g: Buffer
    start: Buffer
    decay: Buffer
    decay_cols: Buffer


def load(
    tile: Tile,
    log_decay: Buffer,
    step_size: Buffer,
    first: Expr,
    valid: Expr,
    h: Expr,
    gate: Gates,
) -> None:
    """The gates of the tile's tokens; Omega and exp(L_t) are running products of betas.

    A step_size [heads] is each head's, one of [tokens, heads] each token's.
    """
    row = T.alloc_buffer((tile.tokens,), "float32")
    last = tile.tokens - 1
    with T.vectorized(tile.tokens) as lane:
        T.buffer_store(gate.beta, T.float32(0), [lane])
        T.buffer_store(gate.g, T.float32(0), [lane])
    with T.serial(valid) as t:
        T.buffer_store(gate.beta, log_decay[first + t, h], [t])
        T.buffer_store(gate.g, step_size[h] if len(step_size.shape) == 1 else step_size[first + t, h], [t])
    with T.vectorized(tile.tokens) as lane:
        T.buffer_store(gate.beta, forget_gate(gate.beta[lane]), [lane])
    _clear(tile, row)
    with T.serial(tile.tokens) as t, T.vectorized(tile.tokens) as lane:
        T.buffer_store(row, T.Select(T.EQ(lane, t), T.float32(1), row[lane] * gate.beta[t]), [lane])
        T.buffer_store(gate.decay, row[lane], [t, lane])
    _clear(tile, row)
    with T.serial(tile.tokens) as s, T.vectorized(tile.tokens) as lane:
        after = row[lane] * gate.beta[T.min(tile.tokens - s, last)]
        T.buffer_store(row, T.Select(T.EQ(lane, last - s), T.float32(1), after), [lane])
        T.buffer_store(gate.decay_cols, row[lane], [last - s, lane])
    with T.vectorized(tile.tokens) as lane:
        T.buffer_store(gate.start, row[lane] * gate.beta[0], [lane])


def _clear(tile: Tile, row: Buffer) -> None:
    with T.vectorized(tile.tokens) as lane:
        T.buffer_store(row, T.float32(0), [lane])
