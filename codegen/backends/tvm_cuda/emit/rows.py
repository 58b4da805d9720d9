"""Rows of tensors [tokens, heads, features], to shared memory and from it: `valid` tokens from `first` on."""

from __future__ import annotations

from collections.abc import Callable

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Buffer, Expr, extent
from codegen.backends.tvm_cuda.emit.threads import each_number
from codegen.backends.tvm_cuda.emit.tile import Tile

Store = Callable[[Expr, Expr, Expr], None]
"""What is emitted at a token and feature, with the number there."""


def load(tile: Tile, rows: Buffer, tensor: Buffer, first: Expr, valid: Expr, h: Expr, padded: bool = True) -> None:
    """rows <- the tile's rows of a tensor in float32; zero past the tile's end, and in the padding where `padded`."""
    features = extent(tensor, 2)

    def number(t: Expr, d: Expr) -> None:
        inside = T.And(t < valid, d < features)
        value = T.if_then_else(inside, T.cast(tensor[first + t, h, d], "float32"), T.float32(0))
        T.buffer_store(rows, value, [t, d])

    each_number(tile, tile.tokens, tile.padded(features) if padded else features, number)


def load_weighted(tile: Tile, rows: Buffer, tensor: Buffer, weight: Buffer, first: Expr, valid: Expr, h: Expr) -> None:
    """rows <- diag(weight) times the tile's rows of a tensor of float32, zero in the padding."""
    features = extent(tensor, 2)

    def number(t: Expr, d: Expr) -> None:
        inside = T.And(t < valid, d < features)
        T.buffer_store(rows, T.if_then_else(inside, tensor[first + t, h, d] * weight[t], T.float32(0)), [t, d])

    each_number(tile, tile.tokens, tile.padded(features), number)


def store(tile: Tile, tensor: Buffer, rows: Buffer, first: Expr, valid: Expr, h: Expr) -> None:
    """The tile's rows of a tensor <- rows[t, :], in the tensor's type."""

    def number(t: Expr, d: Expr) -> None:
        with T.If(t < valid), T.Then():
            T.buffer_store(tensor, T.cast(rows[t, d], tensor.dtype), [first + t, h, d])

    each_number(tile, tile.tokens, extent(tensor, 2), number)


def store_and_weigh(
    tile: Tile, tensor: Buffer, rows: Buffer, weight: Buffer, first: Expr, valid: Expr, h: Expr
) -> None:
    """The tile's rows of a tensor of float32 <- rows[t, :], and rows <- diag(weight) rows."""

    def number(t: Expr, d: Expr) -> None:
        with T.If(t < valid), T.Then():
            T.buffer_store(tensor, rows[t, d], [first + t, h, d])
        T.buffer_store(rows, rows[t, d] * weight[t], [t, d])

    each_number(tile, tile.tokens, extent(tensor, 2), number)


def to_shared(rows: Buffer) -> Store:
    """What stores the outputs of a product in shared memory."""
    return lambda t, d, x: T.buffer_store(rows, x, [t, d])


def to_tensor(tensor: Buffer, first: Expr, valid: Expr, h: Expr) -> Store:
    """What stores the outputs of a product as the tile's rows of a tensor, in its type."""

    def number(t: Expr, d: Expr, x: Expr) -> None:
        with T.If(T.And(t < valid, d < extent(tensor, 2))), T.Then():
            T.buffer_store(tensor, T.cast(x, tensor.dtype), [first + t, h, d])

    return number
