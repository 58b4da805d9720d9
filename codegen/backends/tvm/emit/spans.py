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
from codegen.backends.tvm.emit.vectors import registers
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
    width = tile.width
    project(tile, S, w_cols, Z)
    transpose(tile, Z_rows, Z)
    product(
        tile,
        tile.tokens,
        tile.tokens,
        (extent(w_rows, 1), lambda t, i: w_rows[t, i], lambda i, s: w_cols[i, s]),
        lambda t, s, x: T.buffer_store(
            earlier, x * gate.decay[before_chunk(tile, t), s] * (T.float32(0) - gate.g[s]), [t, s]
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
    """z <- z_t from Z = S w_t and the codes of earlier chunks."""
    begin = t // tile.chunk * tile.chunk
    scale = T.Select(begin > 0, gate.start[before_chunk(tile, t)], T.float32(1))
    sum_of_rows(
        tile,
        lambda b, lane, x: T.buffer_store(z, x, [b, lane]),
        lambda m: scale * Z_rows[t, m],
        begin,
        lambda s: earlier[t, s],
        lambda s, m: U_rows[s, m],
    )


def before_chunk(tile: Tile, t: Expr) -> Expr:
    """The last token before that of t's chunk; 0 in the first chunk, where there is none."""
    return T.max(t // tile.chunk * tile.chunk - 1, 0)


def sum_of_rows(
    tile: Tile,
    store: Callable[[Expr, Expr, Expr], None],
    initial: Callable[[Expr], Expr],
    count: Expr,
    weight: Callable[[Expr], Expr],
    row: Callable[[Expr, Expr], Expr],
) -> None:
    """Emits store(b, lane, initial(m) + the sum over i < count of weight(i) * row(i, m)) for every slot m.

    Slot m lies in a lane of vector b. A few vectors are summed at a time.
    """

    def of_vectors(first: Expr, vectors: int) -> None:
        """Emits the sums of `vectors` vectors of slots from `first` on."""
        sums = registers(tile.width, vectors)

        def every_vector(statement: Callable[[Buffer, Expr, Expr], None]) -> None:
            with T.vectorized(tile.width) as lane:
                for b, x in enumerate(sums):
                    statement(x, first + b, lane)

        def add_row(x: Buffer, b: Expr, lane: Expr) -> None:
            T.buffer_store(x, x[lane] + weight(i) * row(i, b * tile.width + lane), [lane])

        every_vector(lambda x, b, lane: T.buffer_store(x, initial(b * tile.width + lane), [lane]))
        with T.serial(count) as i:
            every_vector(add_row)
        every_vector(lambda x, b, lane: store(b, lane, x[lane]))

    vectors = tile.slot_vectors
    together = min(vectors, _MOST_VECTORS)
    with T.serial(vectors // together) as j:
        of_vectors(j * together, together)
    if vectors % together:
        of_vectors(vectors // together * together, vectors % together)
