"""One memory over a tile: what its state says of the keys, its readouts, and how its state moves on."""

from __future__ import annotations

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Buffer, extent
from codegen.backends.tvm.emit.gates import Gates
from codegen.backends.tvm.emit.products import product
from codegen.backends.tvm.emit.tile import Tile


def project(tile: Tile, S: Buffer, w_cols: Buffer, Z: Buffer, tokens: int | None = None) -> None:
    """Z <- W S^T, transposed, of the tile's first `tokens`, or of all."""
    product(
        tile,
        tile.slots,
        tile.tokens if tokens is None else tokens,
        (extent(w_cols, 0), lambda m, i: S[m, i], lambda i, t: w_cols[i, t]),
        lambda m, t, x: T.buffer_store(Z, x, [m, t]),
    )


def move(tile: Tile, S: Buffer, U: Buffer, w_rows: Buffer, gate: Gates) -> None:
    """S <- exp(L_C) S - U^T diag(gamma exp(L_C - L)) W over the tile; overwrites U."""
    with T.serial(tile.slots) as m, T.vectorized(tile.tokens) as t:
        T.buffer_store(U, U[m, t] * gate.decay[tile.tokens - 1, t] * (T.float32(0) - gate.g[t]), [m, t])
    write(tile, S, U, w_rows, gate)


def write(tile: Tile, S: Buffer, U: Buffer, w_rows: Buffer, gate: Gates) -> None:
    """S <- exp(L_C) S + U W."""
    product(
        tile,
        tile.slots,
        extent(w_rows, 1),
        (tile.tokens, lambda m, i: U[m, i], lambda i, d: w_rows[i, d]),
        lambda m, d, x: T.buffer_store(S, gate.start[tile.tokens - 1] * S[m, d] + x, [m, d]),
    )


def read_slots(
    tile: Tile,
    S: Buffer,
    U: Buffer,
    w_rows: Buffer,
    q_cols: Buffer,
    gate: Gates,
    scores: Buffer,
    o_cols: Buffer,
) -> None:
    """O = diag(exp L) Q S^T - [(Q W^T) * Omega] diag(gamma) U, transposed."""
    features = extent(q_cols, 0)
    product(
        tile,
        tile.tokens,
        tile.tokens,
        (features, lambda s, i: w_rows[s, i], lambda i, t: q_cols[i, t]),
        lambda s, t, x: T.buffer_store(scores, x * gate.decay_cols[s, t] * (T.float32(0) - gate.g[s]), [s, t]),
    )
    product(
        tile,
        tile.slots,
        tile.tokens,
        (features, lambda m, i: S[m, i], lambda i, t: q_cols[i, t]),
        lambda m, t, x: T.buffer_store(o_cols, x, [m, t]),
        lambda m, t: gate.start[t],
        (tile.tokens, lambda m, s: U[m, s], lambda s, t: scores[s, t]),
    )


def read_dims(
    tile: Tile,
    S: Buffer,
    U: Buffer,
    w_rows: Buffer,
    r_cols: Buffer,
    gate: Gates,
    scores: Buffer,
    y_rows: Buffer,
) -> None:
    """Y = diag(exp L) R S - [(R U^T) * Omega] diag(gamma) W."""
    product(
        tile,
        tile.tokens,
        tile.tokens,
        (tile.slots, lambda t, m: r_cols[m, t], lambda m, s: U[m, s]),
        lambda t, s, x: T.buffer_store(scores, x * gate.decay[t, s] * (T.float32(0) - gate.g[s]), [t, s]),
    )
    product(
        tile,
        tile.tokens,
        extent(y_rows, 1),
        (tile.slots, lambda t, m: r_cols[m, t], lambda m, d: S[m, d]),
        lambda t, d, x: T.buffer_store(y_rows, x, [t, d]),
        lambda t, d: gate.start[t],
        (lambda end: end, lambda t, s: scores[t, s], lambda s, d: w_rows[s, d]),
    )
