"""Rows of tensors [tokens, heads, features], to a tile and from it: `valid` tokens from `first` on."""

from __future__ import annotations

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Buffer, Expr, extent, narrowed
from codegen.backends.tvm.emit.tile import Tile
from codegen.backends.tvm.emit.vectors import each_feature


def load(tile: Tile, to: Buffer, tensor: Buffer, first: Expr, valid: Expr, h: Expr) -> None:
    """to[t, :] <- the tile's rows of a tensor in float32; zero past the tile's end."""
    features = extent(tensor, 2)
    with T.serial(valid) as t:
        each_feature(
            tile.width,
            features,
            lambda d: T.buffer_store(to, T.cast(tensor[first + t, h, d], "float32"), [t, d]),
        )
    with T.serial(tile.tokens - valid) as t:
        each_feature(tile.width, features, lambda d: T.buffer_store(to, T.float32(0), [valid + t, d]))


def load_of_head(tile: Tile, to: Buffer, tensor: Buffer, h: Expr) -> None:
    """to <- the row of a head, of a tensor [heads, features]."""
    each_feature(tile.width, extent(tensor, 1), lambda m: T.buffer_store(to, tensor[h, m], [m]))


def store(tile: Tile, tensor: Buffer, rows: Buffer, first: Expr, valid: Expr, h: Expr) -> None:
    """The tile's rows of a tensor <- rows[t, :], in the tensor's type."""
    cast = narrowed if tile.dtype == "bfloat16" else T.cast
    with T.serial(valid) as t:
        each_feature(
            tile.width,
            extent(tensor, 2),
            lambda d: T.buffer_store(tensor, cast(rows[t, d], tensor.dtype), [first + t, h, d]),
        )


def claim(tensor: Buffer, first: Expr, valid: Expr, h: Expr) -> None:
    """Asks for what the tile will store long before it does: stores end in order, each once its line is there."""
    with T.serial(valid) as t:
        prefetch(tensor, first + t, h, writes=True)


def prefetch(tensor: Buffer, token: Expr, h: Expr, writes: bool = False) -> None:
    """Emits requests for the lines of one token's row, to be read or written."""
    line = 16 if tensor.dtype == "float32" else 32  # values in 64 bytes
    with T.serial((extent(tensor, 2) + line - 1) // line) as i:
        address = T.address_of(tensor[token, h, i * line])
        T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", address, int(writes), 3, 1))
