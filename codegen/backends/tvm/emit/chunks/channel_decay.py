"""A tile of a rule whose forget gate is a number for each column of S, a sub-chunk of one vector's tokens.

The functions are those of `scalar_decay`, where their arguments are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm.script import tirx as T

from codegen.backends.tvm.emit.chunks.rows import add_products
from codegen.backends.tvm.emit.chunks.triangle import masked
from codegen.backends.tvm.emit.expressions import Buffer, Expr, extent, forget_gate
from codegen.backends.tvm.emit.tile import Tile
from codegen.backends.tvm.emit.vectors import each_feature, fill, registers, sum_of_lanes, zeros


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
    """Adds what `pairs` gives back to its rows and gates, of features in the lanes; G is the cotangent of its scores.

    The gate of token r has what meets across it, as in `scalar_decay`; the scores are sums over features, of no use.
    """
    width = tile.width
    with T.serial(extent(k_rows, 1) // width) as b:
        lanes = T.ramp(b * width, 1, width)
        _add_decayed(tile, gate, lanes, G, k_rows, dleft_rows, after, diagonal)
        _pull_keys(tile, gate, lanes, G, left_rows, k_rows, dk_rows, dgates, after, diagonal)


def add_decayed(
    tile: Tile, gate: Gates, weights: Buffer, rows: Buffer, to: Buffer, after: bool, diagonal: bool
) -> None:
    """to[t, i] <- itself + the sum over s <= t of weights[t, s] exp(L_ti - L_si) rows[s, i].

    With L_(t-1) unless `after`, and over s < t without the diagonal.
    """
    with T.serial(extent(rows, 1) // tile.width) as b:
        lanes = T.ramp(b * tile.width, 1, tile.width)
        _add_decayed(tile, gate, lanes, weights, rows, to, after, diagonal)


def _add_decayed(
    tile: Tile, gate: Gates, lanes: Expr, weights: Buffer, rows: Buffer, to: Buffer, after: bool, diagonal: bool
) -> None:
    """A row decays from each token to the next."""
    sums, (decayed,) = zeros(tile.width, tile.tokens), registers(tile.width, 1)
    row = T.ramp(0, 1, tile.width)
    for s in range(tile.tokens):
        T.buffer_store(decayed, rows[s, lanes], [row])
        if diagonal:
            T.buffer_store(sums[s], sums[s][row] + _all(tile, weights[s, s]) * decayed[row], [row])
        for t in range(s + 1, tile.tokens):
            if after:
                T.buffer_store(decayed, decayed[row] * gate.beta[t, lanes], [row])
            T.buffer_store(sums[t], sums[t][row] + _all(tile, weights[t, s]) * decayed[row], [row])
            if not after:
                T.buffer_store(decayed, decayed[row] * gate.beta[t, lanes], [row])
    for t, x in enumerate(sums):
        T.buffer_store(to, to[t, lanes] + x[row], [t, lanes])


def _pull_keys(
    tile: Tile,
    gate: Gates,
    lanes: Expr,
    G: Buffer,
    left_rows: Buffer,
    k_rows: Buffer,
    dk_rows: Buffer,
    dgates: Buffer,
    after: bool,
    diagonal: bool,
) -> None:
    """What meets the keys decays from each token to the one before.

    The sums of keys before t then hold what comes from the last token to t: times the keys, what crosses t's gate.
    """
    sums, (left, crossing) = zeros(tile.width, tile.tokens), registers(tile.width, 2)
    row = T.ramp(0, 1, tile.width)

    def cross(t: int) -> None:
        T.buffer_store(crossing, dgates[t, lanes], [row])
        for s in range(t):
            T.buffer_store(crossing, crossing[row] + k_rows[s, lanes] * sums[s][row], [row])
        T.buffer_store(dgates, crossing[row], [t, lanes])

    for t in reversed(range(tile.tokens)):
        if not after:
            cross(t)
        T.buffer_store(left, left_rows[t, lanes], [row])
        if diagonal:
            T.buffer_store(sums[t], sums[t][row] + _all(tile, G[t, t]) * left[row], [row])
        for s in reversed(range(t)):
            if after or s < t - 1:
                T.buffer_store(left, left[row] * gate.beta[s + 1, lanes], [row])
            T.buffer_store(sums[s], sums[s][row] + _all(tile, G[t, s]) * left[row], [row])
        if after:
            cross(t)
    for s, x in enumerate(sums):
        T.buffer_store(dk_rows, dk_rows[s, lanes] + x[row], [s, lanes])


def _all(tile: Tile, x: Expr) -> Expr:
    return T.Broadcast(x, tile.width)


def pull_kept(tile: Tile, gate: Gates, S: Buffer, dS: Buffer, dgates: Buffer) -> None:
    """dgates[t, i] <- what column i of the state at the tile's start is at its end, times the cotangent there."""
    (total,) = registers(tile.width, 1)
    with T.serial(extent(gate.end, 0)) as i:
        fill(total, T.float32(0))
        add_products(tile, total, S, dS, i)
        sum_of_lanes(total)
        with T.serial(tile.tokens) as t:
            T.buffer_store(dgates, total[0] * gate.end[i], [t, i])


def pull_from_start(tile: Tile, gate: Gates, rows: Buffer, drows: Buffer, dgates: Buffer, after: bool) -> None:
    """dgates[t] += rows of tokens r >= t, or r > t unless `after`, times what the tile's first state gave them."""
    _add_running(tile, rows, drows, dgates, lambda step: tile.tokens - 1 - step, after)


def pull_to_end(tile: Tile, gate: Gates, rows: Buffer, drows: Buffer, dgates: Buffer) -> None:
    """dgates[t] += rows of tokens s < t times what they gave to the tile's last state."""
    _add_running(tile, rows, drows, dgates, lambda step: step, False)


def _add_running(
    tile: Tile, rows: Buffer, drows: Buffer, dgates: Buffer, token: Callable[[Expr], Expr], with_own: bool
) -> None:
    """dgates[t, i] += the sum of rows[r, i] drows[r, i] over the tokens that come before t, with its own or not."""
    width = tile.width
    with T.serial(extent(rows, 1) // width) as b:
        (run,) = zeros(width, 1)
        with T.serial(tile.tokens) as step, T.vectorized(width) as lane:
            at = (token(step), b * width + lane)
            if with_own:
                T.buffer_store(run, run[lane] + rows[at] * drows[at], [lane])
            T.buffer_store(dgates, dgates[at] + run[lane], list(at))
            if not with_own:
                T.buffer_store(run, run[lane] + rows[at] * drows[at], [lane])


def store_gates(tile: Tile, gate: Gates, tensor: Buffer, dgates: Buffer, first: Expr, valid: Expr, h: Expr) -> None:
    """The tile's gradients of a tensor [tokens, heads, D_k] <- dgates; 0 where nothing is kept."""
    with T.serial(valid) as t, T.serial(extent(tensor, 2)) as i:
        nothing = T.EQ(gate.beta[t, i], T.float32(0))
        T.buffer_store(tensor, T.Select(nothing, T.float32(0), dgates[t, i]), [first + t, h, i])
