"""States of tensors [.., heads, slots, features], to scratch and from it."""

from __future__ import annotations

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Buffer, Expr, extent
from codegen.backends.tvm.emit.tile import Tile
from codegen.backends.tvm.emit.vectors import each_feature


def load(tile: Tile, S: Buffer, tensor: Buffer, index: Expr, h: Expr) -> None:
    """S <- a state of a tensor, and zeros past its features: no product needs a mask."""
    features = extent(tensor, 3)
    with T.serial(tile.slots) as m:
        _clear_padding(tile, S, m, features)
        each_feature(tile.width, features, lambda d: T.buffer_store(S, tensor[index, h, m, d], [m, d]))


def _clear_padding(tile: Tile, S: Buffer, m: Expr, features: int) -> None:
    """Emits zeros for the vectors of row m that `features` do not fill: what an earlier program left may be NaN."""
    first, width = features // tile.width * tile.width, extent(S, 1)
    if features < width:
        with T.serial((width - first) // tile.width) as b, T.vectorized(tile.width) as lane:
            T.buffer_store(S, T.float32(0), [m, first + b * tile.width + lane])


def store(tile: Tile, tensor: Buffer, S: Buffer, index: Expr, h: Expr) -> None:
    """A state of a tensor <- S."""
    with T.serial(tile.slots) as m:
        each_feature(tile.width, extent(tensor, 3), lambda d: T.buffer_store(tensor, S[m, d], [index, h, m, d]))


def copy(tile: Tile, to: Buffer, S: Buffer) -> None:
    """to <- S."""
    with T.serial(tile.slots) as m:
        each_feature(tile.width, extent(to, 1), lambda d: T.buffer_store(to, S[m, d], [m, d]))


def keep(tile: Tile, tiles: Buffer, S: Buffer, worker: Expr, i_tile: Expr) -> None:
    """A tile's state of a tensor [workers, tiles, slots, features], whose rows are whole vectors, <- S."""
    with T.serial(tile.slots) as m, T.vectorized(extent(S, 1)) as d:
        T.buffer_store(tiles, S[m, d], [worker, i_tile, m, d])


def take(tile: Tile, S: Buffer, tiles: Buffer, worker: Expr, i_tile: Expr) -> None:
    """S <- what was kept."""
    with T.serial(tile.slots) as m, T.vectorized(extent(S, 1)) as d:
        T.buffer_store(S, tiles[worker, i_tile, m, d], [m, d])
