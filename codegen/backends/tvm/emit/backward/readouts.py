"""Both readouts of a tile once more, and what their cotangents say of what they read."""

from __future__ import annotations

from tvm.script import tirx as T

from codegen.backends.tvm.emit.backward.blocks import each_block, scores_product, sum_of_earlier
from codegen.backends.tvm.emit.backward.sums import KEPT, add_product
from codegen.backends.tvm.emit.backward.wanted import LOG_DECAY, if_wanted
from codegen.backends.tvm.emit.expressions import Buffer, Expr, extent
from codegen.backends.tvm.emit.gates import Gates
from codegen.backends.tvm.emit.products import product
from codegen.backends.tvm.emit.tile import Tile


def read_first(
    tile: Tile,
    S: Buffer,
    scaled: Buffer,
    w_rows: Buffer,
    q_cols: Buffer,
    gate: Gates,
    scores: Buffer,
    o_start: Buffer,
    o: Buffer,
) -> None:
    """O, its part from the first state apart."""
    features = extent(w_rows, 1)
    scores_product(
        tile,
        features,
        lambda s, i: w_rows[s, i],
        lambda i, t: q_cols[i, t],
        lambda s, t, x: T.buffer_store(scores, x * gate.decay_cols[s, t], [s, t]),
    )
    product(
        tile,
        tile.slots,
        tile.tokens,
        (features, lambda m, i: S[m, i], lambda i, t: q_cols[i, t]),
        lambda m, t, x: T.buffer_store(o_start, x * gate.start[t], [m, t]),
    )
    sum_of_earlier(
        tile,
        lambda m, s: scaled[m, s],
        scores,
        lambda m, t, x: T.buffer_store(o, o_start[m, t] + x, [m, t]),
    )


def score_second(tile: Tile, scaled: Buffer, r: Buffer, gate: Gates, scores: Buffer) -> None:
    """The scores of the second readout."""
    scores_product(
        tile,
        tile.slots,
        lambda s, m: scaled[m, s],
        lambda m, t: r[m, t],
        lambda s, t, x: T.buffer_store(scores, x * gate.decay_cols[s, t], [s, t]),
    )


def read_rows(tile: Tile, S: Buffer, x_cols: Buffer, w_rows: Buffer, scores: Buffer, gate: Gates, to: Buffer) -> None:
    """to <- diag(exp L) X S + scores^T W."""
    block = tile.width
    each_block(
        tile,
        lambda b: product(
            tile,
            block,
            extent(S, 1),
            (tile.slots, lambda t, m: x_cols[m, b + t], lambda m, d: S[m, d]),
            lambda t, d, x: T.buffer_store(to, x, [b + t, d]),
            lambda t, d: gate.start[b + t],
            (b + block, lambda t, s: scores[s, b + t], lambda s, d: w_rows[s, d]),
        ),
    )


def score_bars_of_second(
    tile: Tile, w_rows: Buffer, dcols: Buffer, gate: Gates, scores: Buffer, dscores: Buffer, pairs: Buffer
) -> None:
    """<v_s, dp_t> with decay, and N times -gamma of the writing token (B5)."""

    def store(s: Expr, t: Expr, x: Expr) -> None:
        T.buffer_store(pairs, x * scores[s, t], [s, t])
        T.buffer_store(dscores, x * gate.decay_cols[s, t], [s, t])

    scores_product(tile, extent(w_rows, 1), lambda s, d: w_rows[s, d], lambda d, t: dcols[d, t], store)


def score_bars_of_first(
    tile: Tile, scaled: Buffer, do: Buffer, gate: Gates, scores: Buffer, dscores: Buffer, pairs: Buffer
) -> None:
    """<u_s, do_t> with decay and -gamma of the writing token; its pairs are added to those of the second readout."""

    def store(s: Expr, t: Expr, x: Expr) -> None:
        T.buffer_store(pairs, pairs[s, t] + x * scores[s, t], [s, t])
        T.buffer_store(dscores, x * gate.decay_cols[s, t], [s, t])

    scores_product(tile, tile.slots, lambda s, m: scaled[m, s], lambda m, t: do[m, t], store)


def pull_second(
    tile: Tile,
    S: Buffer,
    dcols: Buffer,
    scaled: Buffer,
    dscores: Buffer,
    r: Buffer,
    gate: Gates,
    dr: Buffer,
    sums: Buffer,
    wanted: Expr,
) -> None:
    """dR (B1), and what is kept of the first state (B6)."""
    product(
        tile,
        tile.slots,
        tile.tokens,
        (extent(S, 1), lambda m, d: S[m, d], lambda d, t: dcols[d, t]),
        lambda m, t, x: T.buffer_store(dr, x * gate.start[t], [m, t]),
    )
    if_wanted(wanted, LOG_DECAY, lambda: add_product(tile, sums, KEPT, r, dr))
    sum_of_earlier(tile, lambda m, s: scaled[m, s], dscores, lambda m, t, x: T.buffer_store(dr, dr[m, t] + x, [m, t]))
