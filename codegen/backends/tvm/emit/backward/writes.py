"""The writes of a tile backwards: the cotangents of its codes, of what it wrote, and of its first state.

`scaled` codes are -gamma U.
"""

from __future__ import annotations

from tvm.script import tirx as T

from codegen.backends.tvm.emit import memory
from codegen.backends.tvm.emit.backward.blocks import each_block
from codegen.backends.tvm.emit.expressions import Buffer, extent
from codegen.backends.tvm.emit.gates import Gates
from codegen.backends.tvm.emit.products import product
from codegen.backends.tvm.emit.tile import Tile


def move(tile: Tile, S: Buffer, scaled: Buffer, w_rows: Buffer, gate: Gates) -> None:
    """S <- exp(L_C) S - U^T diag(gamma exp(L_C - L)) W over the tile; overwrites `scaled`."""
    lanes, last = tile.lanes, tile.tokens - 1
    lanes.each_vector(
        lambda b: lanes.sweep(
            b, tile.slots, lambda m, t, lane, _: T.buffer_store(scaled, scaled[m, t] * gate.decay[last, t], [m, t])
        )
    )
    memory.write(tile, S, scaled, w_rows, gate)


def pull_codes(
    tile: Tile,
    dS: Buffer,
    w_cols: Buffer,
    reads: Buffer,
    turned: Buffer,
    gate: Gates,
    ends: Buffer,
    Y: Buffer,
) -> None:
    """Y, of which dU is -gamma times (B2 or B3, B7), and its part from the tile's last state, `ends`.

    `turned` has reading tokens as rows: the scores that the cotangents of the codes are sums of.
    """
    block = tile.width
    product(
        tile,
        tile.slots,
        tile.tokens,
        (extent(w_cols, 0), lambda m, i: dS[m, i], lambda i, s: w_cols[i, s]),
        lambda m, s, x: T.buffer_store(ends, x * gate.decay[tile.tokens - 1, s], [m, s]),
    )
    each_block(
        tile,
        lambda b: product(
            tile,
            tile.slots,
            block,
            (tile.tokens - b, lambda m, t: reads[m, b + t], lambda t, s: turned[b + t, b + s]),
            lambda m, s, x: T.buffer_store(Y, ends[m, b + s] + x, [m, b + s]),
        ),
    )


def pull_rows(
    tile: Tile,
    dS: Buffer,
    scaled: Buffer,
    scores: Buffer,
    reading_rows: Buffer,
    gate: Gates,
    dw: Buffer,
) -> None:
    """dW of what was written (B2 or B3)."""
    block = tile.width
    each_block(
        tile,
        lambda b: product(
            tile,
            block,
            extent(dS, 1),
            (tile.slots, lambda s, m: scaled[m, b + s], lambda m, d: dS[m, d]),
            lambda s, d, x: T.buffer_store(dw, x, [b + s, d]),
            lambda s, d: gate.decay[tile.tokens - 1, b + s],
            (tile.tokens - b, lambda s, t: scores[b + s, b + t], lambda t, d: reading_rows[b + t, d]),
        ),
    )


def pull_projection(tile: Tile, dZ: Buffer, S_0: Buffer, dw: Buffer) -> None:
    """dW <- itself + that of Z = W S_0^T (B10)."""
    product(
        tile,
        tile.tokens,
        extent(S_0, 1),
        (tile.slots, lambda s, m: dZ[m, s], lambda m, d: S_0[m, d]),
        lambda s, d, x: T.buffer_store(dw, dw[s, d] + x, [s, d]),
    )


def pull_state(
    tile: Tile,
    dS: Buffer,
    reads: Buffer,
    faded: Buffer,
    reading_rows: Buffer,
    w_rows: Buffer,
    gate: Gates,
    dZ: Buffer = None,
    dS_0: Buffer = None,
) -> None:
    """The cotangent of the tile's first state (B4, B11); overwrites `faded`.

    The part of Z (B11), if there is a dZ, is added to dS_0, that of the first state of a chunk of several tiles.
    """
    lanes, features, last = tile.lanes, extent(dS, 1), tile.tokens - 1
    lanes.each_vector(
        lambda b: lanes.sweep(
            b, tile.slots, lambda m, t, lane, _: T.buffer_store(faded, reads[m, t] * gate.start[t], [m, t])
        )
    )
    of_reads = (tile.tokens, lambda m, t: faded[m, t], lambda t, d: reading_rows[t, d])
    of_z = (tile.tokens, lambda m, s: dZ[m, s], lambda s, d: w_rows[s, d])
    if dS_0 is not None:
        product(tile, tile.slots, features, of_z, lambda m, d, x: T.buffer_store(dS_0, dS_0[m, d] + x, [m, d]))
    joined = dZ is not None and dS_0 is None
    product(
        tile,
        tile.slots,
        features,
        of_reads,
        lambda m, d, x: T.buffer_store(dS, gate.start[last] * dS[m, d] + x, [m, d]),
        None,
        *((of_z,) if joined else ()),
    )
