"""Rows of a tile's scratch, as they are scaled, copied and multiplied."""

from __future__ import annotations

from collections.abc import Callable

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Buffer, Expr, extent
from codegen.backends.tvm.emit.tile import Tile
from codegen.backends.tvm.emit.vectors import fill, sum_of_lanes


def each(tile: Tile, rows: Buffer, value: Callable[[Expr, Expr], Expr]) -> None:
    """rows[t, i] <- value(t, i), padding included."""
    width = tile.width
    with T.serial(extent(rows, 0)) as t, T.serial(extent(rows, 1) // width) as b, T.vectorized(width) as lane:
        T.buffer_store(rows, value(t, b * width + lane), [t, b * width + lane])


def scale_rows(tile: Tile, rows: Buffer, factor: Callable[[Expr], Expr]) -> None:
    """rows[t, :] <- factor(t) rows[t, :]."""
    each(tile, rows, lambda t, i: rows[t, i] * factor(t))


def scale_entries(tile: Tile, rows: Buffer, factors: Buffer) -> None:
    """Rows <- factors o rows."""
    each(tile, rows, lambda t, i: factors[t, i] * rows[t, i])


def copy(tile: Tile, to: Buffer, rows: Buffer) -> None:
    """to <- rows."""
    each(tile, to, lambda t, i: rows[t, i])


def add(tile: Tile, to: Buffer, rows: Buffer) -> None:
    """to <- to + rows."""
    each(tile, to, lambda t, i: to[t, i] + rows[t, i])


def add_products(tile: Tile, sums: Buffer, rows: Buffer, others: Buffer, t: Expr, sign: int = 1) -> None:
    """sums[lane] <- itself + sign times the products of two rows' numbers that lie in that lane."""
    width = tile.width
    with T.serial(extent(rows, 1) // width) as b, T.vectorized(width) as lane:
        i = b * width + lane
        T.buffer_store(sums, sums[lane] + rows[t, i] * others[t, i] * T.float32(sign), [lane])


def negate(tile: Tile, to: Buffer, rows: Buffer) -> None:
    """to <- -rows."""
    each(tile, to, lambda t, i: T.float32(0) - rows[t, i])


def add_to_sum(to: Buffer, numbers: Buffer, valid: Expr) -> None:
    """to[0] <- itself + the sum of the first `valid` numbers."""
    with T.serial(valid) as t:
        T.buffer_store(to, to[0] + numbers[t], [0])


def store_numbers(tensor: Buffer, numbers: Buffer, first: Expr, valid: Expr, h: Expr) -> None:
    """The tile's numbers of a tensor [tokens, heads] <- numbers."""
    with T.serial(valid) as t:
        T.buffer_store(tensor, numbers[t], [first + t, h])


def dots(tile: Tile, to: Buffer, rows: Buffer, others: Buffer) -> None:
    """to[t] <- rows[t, :] . others[t, :]."""
    sums = T.alloc_buffer((tile.width,), "float32")
    with T.serial(tile.tokens) as t:
        fill(sums, T.float32(0))
        add_products(tile, sums, rows, others, t)
        sum_of_lanes(sums)
        T.buffer_store(to, sums[0], [t])
