"""A tile of a rule whose forget gate is one number per token."""

from __future__ import annotations

from dataclasses import dataclass

from tvm.script import tirx as T

from codegen.backends.tvm.emit.chunks.rows import add_products, scale_rows, store_numbers
from codegen.backends.tvm.emit.chunks.triangle import products_of_pairs, pull_products_of_pairs
from codegen.backends.tvm.emit.expressions import Buffer, Expr, extent, forget_gate
from codegen.backends.tvm.emit.tile import Tile
from codegen.backends.tvm.emit.vectors import fill, sum_of_lanes


@dataclass(frozen=True)
class Gates:
    """The buffers of a tile's gates; row t + 1 of two of them is token t's, row 0 the tile's start.

    Attributes:
        beta: of each token.
        start: exp(L_t).
        decay: exp(L_t - L_s) for s <= t, else 0.
    """

    beta: Buffer
    start: Buffer
    decay: Buffer


def load(tile: Tile, log_decay: Buffer, first: Expr, valid: Expr, h: Expr, gate: Gates) -> None:
    """The gates of the tile's tokens, 1 past its end."""
    row, start = T.alloc_buffer((tile.tokens,), "float32"), T.alloc_buffer((1,), "float32")
    with T.vectorized(tile.tokens) as lane:
        T.buffer_store(gate.beta, T.float32(0), [lane])
    with T.serial(valid) as t:
        T.buffer_store(gate.beta, log_decay[first + t, h], [t])
    with T.vectorized(tile.tokens) as lane:
        T.buffer_store(gate.beta, forget_gate(gate.beta[lane]), [lane])
        T.buffer_store(row, T.float32(0), [lane])
        T.buffer_store(gate.decay, T.float32(0), [0, lane])
    T.buffer_store(start, T.float32(1), [0])
    T.buffer_store(gate.start, T.float32(1), [0])
    with T.serial(tile.tokens) as t:
        T.buffer_store(start, start[0] * gate.beta[t], [0])
        T.buffer_store(gate.start, start[0], [t + 1])
        with T.vectorized(tile.tokens) as lane:
            T.buffer_store(row, T.Select(T.EQ(lane, t), T.float32(1), row[lane] * gate.beta[t]), [lane])
            T.buffer_store(gate.decay, row[lane], [t + 1, lane])


def pairs(
    tile: Tile, gate: Gates, depth: int, left_rows: Buffer, k_cols: Buffer, scores: Buffer, after: bool, diagonal: bool
) -> None:
    """scores[t, s] <- exp(L_t - L_s) left_t . k_s for s < t, and for s = t with the diagonal; else 0.

    Args:
        tile, gate: sizes and gates.
        depth: D_k.
        left_rows: q or probes.
        k_cols: keys, transposed.
        scores: the result.
        after: whether token t has decayed what it meets; otherwise L_(t-1) stands for L_t.
        diagonal: whether token t meets its own key.
    """
    shift = 1 if after else 0
    products_of_pairs(tile, depth, left_rows, k_cols, scores, lambda t, s: gate.decay[t + shift, s], diagonal)


def from_start(tile: Tile, gate: Gates, rows: Buffer, after: bool) -> None:
    """rows[t, :] <- exp(L_t) rows[t, :], with L_(t-1) unless `after`."""
    shift = 1 if after else 0
    scale_rows(tile, rows, lambda t: gate.start[t + shift])


def to_end(tile: Tile, gate: Gates, rows: Buffer) -> None:
    """rows[s, :] <- exp(L_C - L_s) rows[s, :]."""
    scale_rows(tile, rows, lambda s: gate.decay[tile.tokens, s])


def kept(gate: Gates, i: Expr) -> Expr:
    """exp(L_C), of every column i of the state."""
    return gate.start[extent(gate.start, 0) - 1]


def pull_pairs(
    tile: Tile,
    gate: Gates,
    G: Buffer,
    scores: Buffer,
    left_rows: Buffer,
    k_rows: Buffer,
    dleft_rows: Buffer,
    dk_rows: Buffer,
    dgates: Buffer,
    after: bool,
    diagonal: bool,
) -> None:
    """Adds what `pairs` gives back to its rows and gates; overwrites G, the cotangent of its scores.

    The gate of token r has what meets across it: the pairs (t, s) with s < r <= t, or r < t unless `after`. Rows times
    their cotangents, summed up to r, would have the pairs of either side too, which cancel and leave no digits where
    little is kept.
    """
    _pull_crossing(tile, G, scores, dgates, after)
    shift = 1 if after else 0
    pull_products_of_pairs(
        tile, G, lambda t, s: gate.decay[t + shift, s], diagonal, left_rows, k_rows, dleft_rows, dk_rows
    )


def _pull_crossing(tile: Tile, G: Buffer, scores: Buffer, dgates: Buffer, after: bool) -> None:
    """Columns hold the sums over tokens from the last to t, of which those before t cross its gate."""
    columns, total = T.alloc_buffer((tile.tokens,), "float32"), T.alloc_buffer((tile.width,), "float32")

    def crossing(t: Expr) -> None:
        fill(total, T.float32(0))
        with T.serial(tile.vectors) as b, T.vectorized(tile.width) as lane:
            s = b * tile.width + lane
            T.buffer_store(total, total[lane] + T.Select(s < t, columns[s], T.float32(0)), [lane])
        sum_of_lanes(total)
        T.buffer_store(dgates, dgates[t] + total[0], [t])

    fill(columns, T.float32(0))
    with T.serial(tile.tokens) as back:
        t = tile.tokens - 1 - back
        if not after:
            crossing(t)
        with T.vectorized(tile.tokens) as s:
            T.buffer_store(columns, columns[s] + T.Select(s < t, G[t, s] * scores[t, s], T.float32(0)), [s])
        if after:
            crossing(t)


def pull_kept(tile: Tile, gate: Gates, S: Buffer, dS: Buffer, dgates: Buffer) -> None:
    """dgates[t] <- what the state at the tile's start is at its end, times the cotangent there: all gates have it."""
    total = T.alloc_buffer((tile.width,), "float32")
    fill(total, T.float32(0))
    with T.serial(extent(S, 0)) as i:
        add_products(tile, total, S, dS, i)
    sum_of_lanes(total)
    with T.serial(tile.tokens) as t:
        T.buffer_store(dgates, total[0] * gate.start[tile.tokens], [t])


def pull_from_start(tile: Tile, gate: Gates, rows: Buffer, drows: Buffer, dgates: Buffer, after: bool) -> None:
    """dgates[t] += rows of tokens r >= t, or r > t unless `after`, times what the tile's first state gave them."""
    run = T.alloc_buffer((1,), "float32")
    T.buffer_store(run, T.float32(0), [0])
    with T.serial(tile.tokens) as back:
        t = tile.tokens - 1 - back
        if not after:
            T.buffer_store(dgates, dgates[t] + run[0], [t])
        _add_dot(tile, run, rows, drows, t)
        if after:
            T.buffer_store(dgates, dgates[t] + run[0], [t])


def pull_to_end(tile: Tile, gate: Gates, rows: Buffer, drows: Buffer, dgates: Buffer) -> None:
    """dgates[t] += rows of tokens s < t times what they gave to the tile's last state."""
    run = T.alloc_buffer((1,), "float32")
    T.buffer_store(run, T.float32(0), [0])
    with T.serial(tile.tokens) as t:
        T.buffer_store(dgates, dgates[t] + run[0], [t])
        _add_dot(tile, run, rows, drows, t)


def _add_dot(tile: Tile, run: Buffer, rows: Buffer, drows: Buffer, t: Expr) -> None:
    total = T.alloc_buffer((tile.width,), "float32")
    fill(total, T.float32(0))
    add_products(tile, total, rows, drows, t)
    sum_of_lanes(total)
    T.buffer_store(run, run[0] + total[0], [0])


def store_gates(tile: Tile, gate: Gates, tensor: Buffer, dgates: Buffer, first: Expr, valid: Expr, h: Expr) -> None:
    """The tile's gradients of a tensor [tokens, heads] <- dgates; 0 where nothing is kept."""
    with T.vectorized(tile.tokens) as t:
        T.buffer_store(dgates, T.Select(T.EQ(gate.beta[t], T.float32(0)), T.float32(0), dgates[t]), [t])
    store_numbers(tensor, dgates, first, valid, h)
