"""A memory of slots that decay each by a gate of its own, with slots in the lanes: the first of two passes (GSA).

Its gates are those of `channel_decay`, as slots are the columns of the second memory's keys.
"""

from __future__ import annotations

from tvm.script import tirx as T

from codegen.backends.tvm.emit.chunks import channel_decay, no_decay
from codegen.backends.tvm.emit.chunks.channel_decay import Gates
from codegen.backends.tvm.emit.expressions import Buffer, extent
from codegen.backends.tvm.emit.products import product
from codegen.backends.tvm.emit.tile import Tile


def read(
    tile: Tile,
    gate: Gates,
    depth: int,
    S: Buffer,
    q_rows: Buffer,
    k_cols: Buffer,
    X: Buffer,
    scores: Buffer,
    o_rows: Buffer,
    after: bool,
) -> None:
    """o_t <- exp(L_t) o (q_t S) + the sum over s <= t of (q_t . k_s) exp(L_t - L_s) o X_s.

    Args:
        tile, gate: sizes and gates.
        depth: D_k.
        S: the state at the tile's start, [D_k, M].
        q_rows, k_cols: queries, and keys transposed.
        X: what is written.
        scores: scratch.
        o_rows: the result.
        after: whether the state is read after the write, else before it.
    """
    product(
        tile,
        tile.tokens,
        extent(o_rows, 1),
        (depth, lambda t, i: q_rows[t, i], lambda i, m: S[i, m]),
        lambda t, m, x: T.buffer_store(o_rows, x, [t, m]),
    )
    channel_decay.from_start(tile, gate, o_rows, after)
    no_decay.pairs(tile, no_decay.Gates(), depth, q_rows, k_cols, scores, after, after)
    channel_decay.add_decayed(tile, gate, scores, X, o_rows, after, after)


def move(tile: Tile, gate: Gates, depth: int, S: Buffer, k_rows: Buffer, X: Buffer) -> None:
    """S[i, m] <- exp(L_Cm) S[i, m] + (K^T X)[i, m], of writes that are decayed to the tile's end."""
    product(
        tile,
        depth,
        extent(S, 1),
        (tile.tokens, lambda i, s: k_rows[s, i], lambda s, m: X[s, m]),
        lambda i, m, x: T.buffer_store(S, gate.end[m] * S[i, m] + x, [i, m]),
    )
