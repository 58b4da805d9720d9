"""The reverse pass of a tile that spans several chunks.

A token's z is taken at the start of its chunk, carried there from the tile's first state by the codes of earlier
chunks, as in codegen/backends/tvm/emit/spans.py. That is one more readout, of W by itself (B19 of docs/backward.md):
its cotangents are those of a readout. Only u from z, and dz from du, go token by token, with slots in the lanes.

Rows of `crossing` are reading tokens, its lanes the writing tokens of earlier chunks; start_z[t] is exp(L) there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm.script import tirx as T

from codegen.backends.tvm.emit.backward.sums import KEPT, STEPS, add_pairs
from codegen.backends.tvm.emit.backward.wanted import STEP_SIZE, if_wanted
from codegen.backends.tvm.emit.expressions import Buffer, Expr, extent
from codegen.backends.tvm.emit.gates import Gates
from codegen.backends.tvm.emit.memory import project
from codegen.backends.tvm.emit.products import product
from codegen.backends.tvm.emit.spans import before_chunk, sum_of_rows
from codegen.backends.tvm.emit.tile import Tile
from codegen.backends.tvm.emit.transpose import transpose
from codegen.backends.tvm.emit.vectors import add, sum_of_lanes, zeros
from codegen.backends.tvm.emit.walks import Slots


@dataclass(frozen=True)
class Memory:
    """Buffers of one memory.

    Attributes:
        crossing: products of reading tokens with the writing ones of earlier chunks, with decay.
        z_rows, u_rows, scaled_rows: z, u and -gamma u of each token.
    """

    crossing: Buffer
    z_rows: Buffer
    u_rows: Buffer
    scaled_rows: Buffer


@dataclass(frozen=True)
class Token:
    """Buffers of one token, with one column: slots lie in the lanes."""

    z: Buffer
    a: Buffer
    u: Buffer
    scaled: Buffer
    sigma: Buffer
    stats: Buffer
    y: Buffer
    dz: Buffer
    da: Buffer


def find_starts(tile: Tile, gate: Gates, start_z: Buffer) -> None:
    """start_z[t] <- exp(L) where the z of t is taken."""
    with T.serial(tile.tokens) as t:
        kept = T.Select(t < tile.chunk, T.float32(1), gate.start[before_chunk(tile, t)])
        T.buffer_store(start_z, kept, [t])


def codes(
    tile: Tile,
    write_codes: Callable[..., None],
    S: Buffer,
    w_cols: Buffer,
    w_rows: Buffer,
    Z: Buffer,
    U: Buffer,
    scaled: Buffer,
    memory: Memory,
    target_rows: Buffer,
    gate: Gates,
    start_z: Buffer,
    valid: Expr,
    token: Token,
) -> None:
    """Z = W S^T, from the tile's first state, and U, token after token (B19)."""
    product(
        tile,
        tile.tokens,
        tile.tokens,
        (extent(w_rows, 1), lambda t, i: w_rows[t, i], lambda i, s: w_cols[i, s]),
        lambda t, s, x: T.buffer_store(memory.crossing, _crossing(tile, gate, t, s, x), [t, s]),
    )
    project(tile, S, w_cols, Z)
    transpose(tile, memory.z_rows, Z)
    with T.serial(valid) as t:
        sum_of_rows(
            tile,
            _to(tile, token.z),
            lambda m: start_z[t] * memory.z_rows[t, m],
            t // tile.chunk * tile.chunk,
            lambda s: memory.crossing[t, s],
            lambda s, m: memory.scaled_rows[s, m],
        )
        _each_slot(tile, lambda m: T.buffer_store(memory.z_rows, token.z[m, 0], [t, m]))
        _write(tile, write_codes, target_rows, gate, t, token)
        _each_slot(tile, lambda m: T.buffer_store(memory.u_rows, token.u[m, 0], [t, m]))
        _each_slot(tile, lambda m: T.buffer_store(memory.scaled_rows, token.scaled[m, 0], [t, m]))
    _clear_rows(tile, memory.u_rows, valid)
    _clear_rows(tile, memory.scaled_rows, valid)
    transpose(tile, U, memory.u_rows)
    transpose(tile, scaled, memory.scaled_rows)


def _crossing(tile: Tile, gate: Gates, t: Expr, s: Expr, x: Expr) -> Expr:
    return T.Select(t < tile.chunk, T.float32(0), x * gate.decay[before_chunk(tile, t), s])


def _write(
    tile: Tile, write_codes: Callable[..., None], target_rows: Buffer, gate: Gates, t: Expr, token: Token
) -> None:
    """u of token t, and what the reverse pass needs of its z."""
    _each_slot(tile, lambda m: T.buffer_store(token.a, target_rows[t, m], [m, 0]))
    write_codes(Slots(tile.width), token.z, token.a, token.u, token.scaled, token.sigma, token.stats, [gate.g[t]])


def push_tokens(
    tile: Tile,
    write_codes: Callable[..., None],
    push_codes: Callable[..., None],
    Y: Buffer,
    memory: Memory,
    target_rows: Buffer,
    gate: Gates,
    valid: Expr,
    y_rows: Buffer,
    dtarget_rows: Buffer,
    first: bool,
    sums: Buffer,
    wanted: Expr,
    token: Token,
    dz_rows: Buffer | None = None,
) -> None:
    """dz, if it has rows, and dtarget from Y, token before token; dstep_size (B5, B12)."""
    transpose(tile, y_rows, Y)
    with T.serial(valid) as back:
        t = valid - 1 - back
        if dz_rows is None:
            _each_slot(tile, lambda m: T.buffer_store(token.y, y_rows[t, m], [m, 0]))
        else:
            later = (t // tile.chunk + 1) * tile.chunk
            sum_of_rows(
                tile,
                _to(tile, token.y),
                lambda m: y_rows[t, m],
                T.max(valid - later, 0),
                lambda i: memory.crossing[later + i, t],
                lambda i, m: dz_rows[later + i, m],
            )
        _each_slot(tile, lambda m: T.buffer_store(token.z, memory.z_rows[t, m], [m, 0]))
        _write(tile, write_codes, target_rows, gate, t, token)
        if_wanted(wanted, STEP_SIZE, lambda: _subtract_product(tile, sums, t, token.u, token.y))
        push_codes(
            Slots(tile.width),
            token.z,
            token.a,
            token.sigma,
            token.stats,
            [gate.g[t]],
            token.y,
            token.dz,
            token.da,
            True,
        )
        if dz_rows is not None:
            _each_slot(tile, lambda m: T.buffer_store(dz_rows, token.dz[m, 0], [t, m]))
        _each_slot(
            tile,
            lambda m: T.buffer_store(
                dtarget_rows, token.da[m, 0] if first else dtarget_rows[t, m] + token.da[m, 0], [t, m]
            ),
        )


def turn_dz(tile: Tile, dZ: Buffer, dz_rows: Buffer, valid: Expr) -> None:
    """dZ from the rows of dz."""
    _clear_rows(tile, dz_rows, valid)
    transpose(tile, dZ, dz_rows)


def _subtract_product(tile: Tile, sums: Buffer, t: Expr, u: Buffer, y: Buffer) -> None:
    """dstep_size of token t."""
    (total,) = zeros(tile.width, 1)
    Slots(tile.width).sweep(0, tile.slots, lambda m, _, lane, real: add(total, lane, u[m, 0] * y[m, 0]))
    sum_of_lanes(total)
    T.buffer_store(sums, sums[STEPS, t] - total[0], [STEPS, t])


def pull_crossing(
    tile: Tile,
    dZ: Buffer,
    Z: Buffer,
    scaled: Buffer,
    gate: Gates,
    start_z: Buffer,
    crossing: Buffer,
    dcrossing: Buffer,
    turned: Buffer,
    pairs: Buffer,
    kept_z: Buffer,
    first: bool,
) -> None:
    """What dz says of the codes and gates (B19); dZ <- diag(start_z) dZ, dcrossing is made symmetric."""
    lanes = tile.lanes

    def store(t: Expr, s: Expr, x: Expr) -> None:
        found = x * crossing[t, s]
        T.buffer_store(pairs, found if first else pairs[t, s] + found, [t, s])
        T.buffer_store(dcrossing, _crossing(tile, gate, t, s, x), [t, s])

    def of_vector(b: Expr) -> None:
        (total,) = lanes.zeros(1)

        def keep(t: Expr, lane: Expr) -> None:
            kept = total[lane] * start_z[t]
            T.buffer_store(kept_z, kept if first else kept_z[t] + kept, [t])

        lanes.sweep(b, tile.slots, lambda m, t, lane, _: add(total, lane, dZ[m, t] * Z[m, t]))
        lanes.each_lane(b, keep)
        lanes.sweep(b, tile.slots, lambda m, t, lane, _: T.buffer_store(dZ, dZ[m, t] * start_z[t], [m, t]))

    product(
        tile,
        tile.tokens,
        tile.tokens,
        (tile.slots, lambda t, m: dZ[m, t], lambda m, s: scaled[m, s]),
        store,
    )
    lanes.each_vector(of_vector)
    transpose(tile, turned, dcrossing)
    with T.serial(tile.tokens) as t, T.vectorized(tile.tokens) as s:
        T.buffer_store(dcrossing, dcrossing[t, s] + turned[t, s], [t, s])


def add_crossing(tile: Tile, dcrossing: Buffer, w_rows: Buffer, dw: Buffer) -> None:
    """dW of the readout of W by itself: both its reads and its writes (B1, B2)."""
    product(
        tile,
        tile.tokens,
        extent(w_rows, 1),
        (tile.tokens, lambda t, s: dcrossing[t, s], lambda s, d: w_rows[s, d]),
        lambda t, d, x: T.buffer_store(dw, dw[t, d] + x, [t, d]),
    )


def pull_crossing_gates(tile: Tile, pairs: Buffer, kept_z: Buffer, turned: Buffer, sums: Buffer) -> None:
    """dL of all z (B6, B19)."""
    chunk = tile.chunk
    transpose(tile, turned, pairs)
    add_pairs(tile, sums, turned, lambda j, t: j // chunk * chunk > t)
    with T.serial(tile.tokens - chunk) as j:
        t = before_chunk(tile, chunk + j)
        T.buffer_store(sums, sums[KEPT, t] + kept_z[chunk + j], [KEPT, t])


def _each_slot(tile: Tile, statement: Callable[[Expr], None]) -> None:
    """Emits statement(m) for every slot, those that pad the last vector included."""
    with T.serial(tile.slot_vectors) as j, T.vectorized(tile.width) as lane:
        statement(j * tile.width + lane)


def _to(tile: Tile, x: Buffer) -> Callable[[Expr, Expr, Expr], None]:
    """What stores a sum of rows in a buffer of one column."""
    return lambda b, lane, value: T.buffer_store(x, value, [b * tile.width + lane, 0])


def _clear_rows(tile: Tile, rows: Buffer, valid: Expr) -> None:
    """Rows past the tile's end <- 0."""
    with T.serial(tile.tokens - valid) as p:
        _each_slot(tile, lambda m: T.buffer_store(rows, T.float32(0), [valid + p, m]))
