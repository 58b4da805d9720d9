"""One memory over a tile: what its state says of the keys, its readouts, and how its state moves on."""

from __future__ import annotations

from collections.abc import Sequence

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Buffer, Expr
from codegen.backends.tvm_cuda.emit.products import multiplier
from codegen.backends.tvm_cuda.emit.sums import Outputs, Store
from codegen.backends.tvm_cuda.emit.threads import each_number
from codegen.backends.tvm_cuda.emit.tile import Tile


def project(tile: Tile, Z: Buffer, W: Buffer, S: Buffer, features: int) -> None:
    """Z <- W S^T."""
    by = multiplier(tile)
    by.product(
        *(tile, tile.tokens, tile.padded(tile.slots)),
        lambda sums, at: by.add_by_rows(tile, sums, at, W, S, tile.padded(features)),
        lambda t, m, x: T.buffer_store(Z, x, [t, m]),
        adjacent=False,
    )


def move(tile: Tile, S: Buffer, U: Buffer, W: Buffer, features: int, forget: Expr) -> None:
    """S <- forget S + U^T W over the tile."""
    by = multiplier(tile)
    by.product(
        *(tile, tile.padded(tile.slots), tile.padded(features)),
        lambda sums, at: by.add_by_tokens(tile, sums, at, U, W, tile.tokens),
        lambda m, d, x: T.buffer_store(S, forget * S[m, d] + x, [m, d]),
        adjacent=True,
    )


def score(tile: Tile, scores: Buffer, X: Buffer, Y: Buffer, features: int, Omega: Buffer) -> None:
    """scores <- -(X Y^T) * Omega, which is zero for what lies in a token's future."""
    by = multiplier(tile)
    by.product(
        *(tile, tile.tokens, tile.tokens),
        lambda sums, at: by.add_by_rows(tile, sums, at, X, Y, tile.padded(features)),
        lambda t, s, x: T.buffer_store(scores, (T.float32(0) - x) * Omega[t, s], [t, s]),
        adjacent=False,
    )


def read_slots(
    tile: Tile, S: Buffer, U: Buffer, q: Buffer, scores: Buffer, features: int, start: Buffer, store: Store
) -> None:
    """Emits store(t, m, o) for O = diag(exp L) Q S^T + scores U."""
    by = multiplier(tile)

    def add(sums: Buffer, at: Outputs) -> None:
        by.add_by_rows(tile, sums, at, q, S, tile.padded(features))
        _scale_rows(tile, sums, at.rows, start)
        by.add_by_columns(tile, sums, at, scores, U, by.up_to(at), adjacent=False)

    by.product(tile, tile.tokens, tile.padded(tile.slots), add, store, adjacent=False)


def read_dims(
    tile: Tile, S: Buffer, W: Buffer, r: Buffer, scores: Buffer, features: int, start: Buffer, store: Store
) -> None:
    """Emits store(t, d, y) for Y = diag(exp L) R S + scores W."""
    by = multiplier(tile)

    def add(sums: Buffer, at: Outputs) -> None:
        by.add_by_columns(tile, sums, at, r, S, tile.padded(tile.slots), adjacent=True)
        _scale_rows(tile, sums, at.rows, start)
        by.add_by_columns(tile, sums, at, scores, W, by.up_to(at), adjacent=True)

    by.product(tile, tile.tokens, tile.padded(features), add, store, adjacent=True)


def scale_codes(tile: Tile, U: Buffer, Omega: Buffer) -> None:
    """U <- -diag(gamma exp(L_C - L)) U, with C the tile's last token."""
    last = tile.tokens - 1
    each_number(
        *(tile, tile.tokens, tile.padded(tile.slots)),
        lambda t, m: T.buffer_store(U, U[t, m] * (T.float32(0) - Omega[last, t]), [t, m]),
    )


def _scale_rows(tile: Tile, sums: Buffer, rows: Sequence[Expr], start: Buffer) -> None:
    """Emits sums <- diag(start) sums."""
    for r, row in enumerate(rows):
        for place in range(r * tile.columns, (r + 1) * tile.columns):
            T.buffer_store(sums, sums[place] * start[row], [place])
