"""Codes of a tile that spans several chunks.

A token's z is taken at the start of its chunk, which the tile does not hold; it is the tile's first state carried there
by the codes of the earlier chunks: with b the first token of t's chunk,

    z_t = exp(L_{b-1}) S w_t - sum over s < b of Omega[b-1, s] step_size_s u_s <w_s, w_t>

so only the codes follow one another, and every product with a state is made for the whole tile at once. Chunks of whole
vectors keep tokens in the lanes; shorter ones go token by token, with slots in the lanes.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Buffer, Expr, extent
from codegen.backends.tvm.emit.gates import Gates
from codegen.backends.tvm.emit.memory import project
from codegen.backends.tvm.emit.products import product
from codegen.backends.tvm.emit.recurrence import clear_past
from codegen.backends.tvm.emit.tile import Tile
from codegen.backends.tvm.emit.transpose import transpose
from codegen.backends.tvm.emit.walks import Lanes, Token

_MOST_VECTORS = 8
"""Vectors of slots that are summed in registers at a time."""


def codes(
    tile: Tile,
    codes_of: Callable[..., None],
    S: Buffer,
    w_rows: Buffer,
    w_cols: Buffer,
    target_cols: Buffer,
    gate: Gates,
    earlier: Buffer,
    Z: Buffer,
    U: Buffer,
) -> None:
    """U of the tile, chunk after chunk, transposed; the first chunk starts from S itself."""
    vectors = tile.chunk // tile.width
    project(tile, S, w_cols, Z, tile.chunk)
    codes_of(Lanes(tile.width, 0, vectors), Z, target_cols, U)
    # One copy for each chunk, since the sizes of its products grow.
    for b in range(tile.chunk, tile.tokens // tile.chunk * tile.chunk, tile.chunk):
        _carry_chunk(tile, b, S, w_rows, w_cols, gate, earlier, Z, U)
        codes_of(Lanes(tile.width, b // tile.width, vectors), Z, target_cols, U)


def _carry_chunk(
    tile: Tile,
    b: int,
    S: Buffer,
    w_rows: Buffer,
    w_cols: Buffer,
    gate: Gates,
    earlier: Buffer,
    Z: Buffer,
    U: Buffer,
) -> None:
    """Z of the chunk that starts at the tile's token b."""
    features = extent(w_cols, 0)
    product(
        tile,
        b,
        tile.chunk,
        (features, lambda s, i: w_rows[s, i], lambda i, t: w_cols[i, b + t]),
        lambda s, t, x: T.buffer_store(earlier, x * gate.decay[b - 1, s] * (T.float32(0) - gate.g[s]), [s, t]),
    )
    product(
        tile,
        tile.slots,
        tile.chunk,
        (features, lambda m, i: S[m, i], lambda i, t: w_cols[i, b + t]),
        lambda m, t, x: T.buffer_store(Z, x, [m, b + t]),
        lambda m, t: gate.start[b - 1],
        (b, lambda m, s: U[m, s], lambda s, t: earlier[s, t]),
    )


def codes_by_token(
    tile: Tile,
    codes_of: Callable[..., None],
    S: Buffer,
    w_rows: Buffer,
    w_cols: Buffer,
    target_rows: Buffer,
    gate: Gates,
    valid: Expr,
    earlier: Buffer,
    Z: Buffer,
    U: Buffer,
    Z_rows: Buffer,
    U_rows: Buffer,
    z: Buffer,
    a: Buffer,
    u: Buffer,
) -> None:
    """U of the tile, token after token, transposed."""
    width, chunk = tile.width, tile.chunk
    project(tile, S, w_cols, Z)
    transpose(tile, Z_rows, Z)
    product(
        tile,
        tile.tokens,
        tile.tokens,
        (extent(w_rows, 1), lambda t, i: w_rows[t, i], lambda i, s: w_cols[i, s]),
        lambda t, s, x: T.buffer_store(
            earlier, x * gate.decay[T.max(t // chunk * chunk - 1, 0), s] * (T.float32(0) - gate.g[s]), [t, s]
        ),
    )
    with T.serial(valid) as t:
        _carry(tile, z, Z_rows, U_rows, earlier, gate, t)
        clear_past(width, z, tile.slots)
        _each_lane(tile, lambda b, lane: T.buffer_store(a, target_rows[t, b * width + lane], [b, lane]))
        codes_of(Token(width), z, a, u)
        _each_lane(tile, lambda b, lane: T.buffer_store(U_rows, u[b, lane], [t, b * width + lane]))
    with T.serial(tile.tokens - valid) as p:
        _each_lane(tile, lambda b, lane: T.buffer_store(U_rows, T.float32(0), [valid + p, b * width + lane]))
    transpose(tile, U, U_rows)


def _each_lane(tile: Tile, statement: Callable[[Expr, Expr], None]) -> None:
    """Emits statement(b, lane) for every lane of every vector b of a token's slots."""
    with T.serial(tile.slot_vectors) as b, T.vectorized(tile.width) as lane:
        statement(b, lane)


def _carry(tile: Tile, z: Buffer, Z_rows: Buffer, U_rows: Buffer, earlier: Buffer, gate: Gates, t: Expr) -> None:
    """Emits z <- z_t from Z = S w_t and the codes of earlier chunks, a few vectors at a time."""
    vectors = tile.slot_vectors
    together = min(vectors, _MOST_VECTORS)
    with T.serial(vectors // together) as j:
        _carry_vectors(tile, z, Z_rows, U_rows, earlier, gate, t, j * together, together)
    rest = vectors % together
    if rest:
        _carry_vectors(tile, z, Z_rows, U_rows, earlier, gate, t, vectors - rest, rest)


def _carry_vectors(
    tile: Tile,
    z: Buffer,
    Z_rows: Buffer,
    U_rows: Buffer,
    earlier: Buffer,
    gate: Gates,
    t: Expr,
    first: Expr,
    vectors: int,
) -> None:
    sums = [T.alloc_buffer((tile.width,), "float32") for _ in range(vectors)]
    begin = t // tile.chunk * tile.chunk

    def every_vector(statement: Callable[[int, Expr, Expr], None]) -> None:
        with T.vectorized(tile.width) as lane:
            for b in range(vectors):
                statement(b, lane, (first + b) * tile.width + lane)

    scale = T.Select(begin > 0, gate.start[T.max(begin - 1, 0)], T.float32(1))
    every_vector(lambda b, lane, m: T.buffer_store(sums[b], scale * Z_rows[t, m], [lane]))
    with T.serial(begin) as s:
        every_vector(lambda b, lane, m: T.buffer_store(sums[b], sums[b][lane] + earlier[t, s] * U_rows[s, m], [lane]))
    every_vector(lambda b, lane, m: T.buffer_store(z, sums[b][lane], [first + b, lane]))
