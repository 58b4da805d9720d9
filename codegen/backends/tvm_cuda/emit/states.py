"""States of tensors [.., heads, slots, features], to shared memory and from it."""

from __future__ import annotations

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Buffer, Expr, extent
from codegen.backends.tvm_cuda.emit.threads import each_number
from codegen.backends.tvm_cuda.emit.tile import Tile


def load(tile: Tile, S: Buffer, tensor: Buffer, index: Expr, h: Expr) -> None:
    """S <- a state of a tensor, zero in the padding."""
    features = extent(tensor, 3)

    def number(m: Expr, d: Expr) -> None:
        inside = T.And(m < tile.slots, d < features)
        T.buffer_store(S, T.if_then_else(inside, tensor[index, h, m, d], T.float32(0)), [m, d])

    each_number(tile, tile.padded(tile.slots), tile.padded(features), number)


def store(tile: Tile, tensor: Buffer, S: Buffer, index: Expr, h: Expr) -> None:
    """A state of a tensor <- S."""
    each_number(
        *(tile, tile.slots, extent(tensor, 3)),
        lambda m, d: T.buffer_store(tensor, S[m, d], [index, h, m, d]),
    )
