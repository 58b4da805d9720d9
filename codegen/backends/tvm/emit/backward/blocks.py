"""Products in blocks of tokens, one vector each, where earlier and later tokens of a tile meet.

Scores lie with writing tokens as rows and reading tokens as lanes.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Buffer, Expr
from codegen.backends.tvm.emit.products import Entry, Store, product
from codegen.backends.tvm.emit.tile import Tile


def each_block(tile: Tile, statement: Callable[[Expr], None]) -> None:
    """Emits statement(b) for every block of tokens, b its first one."""
    with T.serial(tile.vectors) as j:
        statement(j * tile.width)


def scores_product(tile: Tile, depth: int, left: Entry, right: Entry, store: Store) -> None:
    """Emits store(s, t, sum) for writing tokens s and reading tokens t, in blocks that hold a pair s <= t."""
    block = tile.width
    with T.serial(tile.vectors) as j, T.serial(j + 1) as i:
        product(
            tile,
            block,
            block,
            (depth, lambda s, d: left(i * block + s, d), lambda d, t: right(d, j * block + t)),
            lambda s, t, x: store(i * block + s, j * block + t, x),
        )


def sum_of_earlier(tile: Tile, left: Entry, scores: Buffer, store: Store) -> None:
    """Emits store(m, t, sum over s <= t of left(m, s) scores[s, t])."""
    each_block(
        tile,
        lambda b: product(
            tile,
            tile.slots,
            tile.width,
            (b + tile.width, left, lambda s, t: scores[s, b + t]),
            lambda m, t, x: store(m, b + t, x),
        ),
    )
