"""Sums over the slots of each token, of which the gradients of the gates are made.

Rows of `sums` are what is kept of the tile's first state (B6), -gamma m (B13), dstep_size (B5, B12), and what (B6) has
of pairs of tokens.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Buffer, Expr, extent
from codegen.backends.tvm.emit.gates import Gates
from codegen.backends.tvm.emit.tile import Tile
from codegen.backends.tvm.emit.vectors import add, sum_of_lanes

KEPT, ENDS, STEPS, PAIRS = range(4)
"""The rows of `sums`."""


def add_product(tile: Tile, sums: Buffer, row: int, one: Buffer, other: Buffer, sign: float = 1.0) -> None:
    """A row of sums <- itself + sign <one, other> of every token."""
    lanes = tile.lanes

    def of_vector(b: Expr) -> None:
        (total,) = lanes.zeros(1)
        lanes.sweep(b, tile.slots, lambda m, t, lane, _: add(total, lane, one[m, t] * other[m, t]))
        lanes.each_lane(b, lambda t, lane: T.buffer_store(sums, sums[row, t] + total[lane] * T.float32(sign), [row, t]))

    lanes.each_vector(of_vector)


def add_kept(tile: Tile, kept_state: Buffer, S: Buffer, dS: Buffer, gate: Gates) -> None:
    """kept_state <- itself + exp(L_C) <dS_C, S> (B13)."""
    width = tile.width
    (total,) = tile.lanes.zeros(1)
    with T.serial(tile.slots) as m, T.serial(extent(S, 1) // width) as b, T.vectorized(width) as lane:
        add(total, lane, dS[m, b * width + lane] * S[m, b * width + lane])
    sum_of_lanes(total)
    T.buffer_store(kept_state, kept_state[0] + gate.start[tile.tokens - 1] * total[0], [0])


def add_pairs(
    tile: Tile,
    sums: Buffer,
    pairs: Buffer,
    is_later: Callable[[Expr, Expr], Expr] = lambda j, t: j >= t,
) -> None:
    """Of pairs of tokens, at t: <- itself + pairs[s, j] over s < t and later j; overwrites pairs with running sums."""
    lanes, width = tile.lanes, tile.width
    with T.serial(tile.tokens) as t:
        (total,) = lanes.zeros(1)

        def add_later(j: Expr, lane: Expr) -> None:
            add(total, lane, T.Select(is_later(j, t), pairs[T.max(t - 1, 0), j], T.float32(0)))

        lanes.each_vector(lambda b: lanes.each_lane(b, add_later))
        sum_of_lanes(total)
        T.buffer_store(sums, sums[PAIRS, t] + T.Select(t > 0, total[0], T.float32(0)), [PAIRS, t])
        with T.serial(T.Select(t > 0, 1, 0) * tile.vectors) as b, T.vectorized(width) as lane:
            s = b * width + lane
            T.buffer_store(pairs, pairs[t, s] + pairs[T.max(t - 1, 0), s], [t, s])


def store_log_decay(
    tile: Tile,
    pairs: Buffer,
    sums: Buffer,
    kept_state: Buffer,
    dlog_decay: Buffer,
    first: Expr,
    valid: Expr,
    h: Expr,
) -> None:
    """dlog_decay (B6, B13) of the tile's tokens."""
    last = tile.tokens - 1
    add_pairs(tile, sums, pairs)
    with T.serial(last) as back:
        t = last - 1 - back
        T.buffer_store(sums, sums[KEPT, t] + sums[KEPT, last - back], [KEPT, t])
    with T.serial(last) as back:
        T.buffer_store(sums, sums[ENDS, last - 1 - back], [ENDS, last - back])
    T.buffer_store(sums, kept_state[0], [ENDS, 0])
    with T.serial(last) as t:
        T.buffer_store(sums, sums[ENDS, t] + sums[ENDS, t + 1], [ENDS, t + 1])
    with T.serial(valid) as t:
        T.buffer_store(dlog_decay, sums[KEPT, t] + sums[ENDS, t] + sums[PAIRS, t], [first + t, h])
