"""How a row is walked: a tile of tokens, or one token. The functions that codegen/maps/emit/tvm.py writes take a walk.

A statement is emitted at m, t, which index the buffers, in a lane of a vector: X[m, t] of a tile is feature m of token
t, and tokens lie in the lanes; in those of one token, slots lie in the lanes. `real` clears what only pads a vector.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm.script import tirx as T

from codegen.backends.tvm.emit import vectors
from codegen.backends.tvm.emit.expressions import Buffer, Expr

Statement = Callable[[Expr, Expr, Expr, Callable[..., Expr]], None]
"""What is emitted at m, t, in a lane, with `real`."""


@dataclass(frozen=True)
class _Walk:
    width: int

    def registers(self, count: int) -> list[Buffer]:
        """Vectors that hold nothing yet."""
        return vectors.registers(self.width, count)

    def zeros(self, count: int) -> list[Buffer]:
        """Vectors of zeros."""
        return vectors.zeros(self.width, count)


@dataclass(frozen=True)
class Lanes(_Walk):
    """A tile's tokens, of which `blocks` vectors from `first` on are meant: features are rows, tokens are lanes."""

    first: int
    blocks: int

    def each_vector(self, statement: Callable[[Expr], None]) -> None:
        """Emits statement(b) for every vector b."""
        with T.serial(self.first, self.first + self.blocks) as b:
            statement(b)

    def sweep(self, b: Expr, features: int, statement: Statement) -> None:
        """Emits statement(m, t, lane, real) for every feature m and token t of vector b."""
        with T.serial(features) as m, T.vectorized(self.width) as lane:
            statement(m, b * self.width + lane, lane, _itself)

    def each_lane(self, b: Expr, statement: Callable[[Expr, Expr], None]) -> None:
        """Emits statement(t, lane) for every token t of vector b."""
        with T.vectorized(self.width) as lane:
            statement(b * self.width + lane, lane)

    each_token = each_lane

    def total(self, *of_rows: Buffer) -> None:
        """Rows of features need nothing more."""

    highest = total

    def scratch(self, features: int) -> Buffer:
        """A buffer [features, width] for rows of one vector."""
        return T.alloc_buffer((features, self.width), "float32")


class _OneToken(_Walk):
    def each_vector(self, statement: Callable[[Expr], None]) -> None:
        """There is one."""
        statement(0)

    def total(self, *of_lanes: Buffer) -> None:
        """Every lane of some vectors <- the sum of all of its lanes."""
        vectors.sum_of_lanes(*of_lanes)

    def highest(self, *of_lanes: Buffer) -> None:
        """Every lane of some vectors <- the highest of its lanes."""
        vectors.highest_of_lanes(*of_lanes)


class Token(_OneToken):
    """One token, whose features lie row after row, `width` to a row; lanes past the last feature hold anything."""

    def sweep(self, b: Expr, features: int, statement: Statement) -> None:
        """Emits statement(m, lane, lane, real) for every row m of features."""
        whole, rest = features // self.width, features % self.width
        if whole:
            with T.serial(whole) as m, T.vectorized(self.width) as lane:
                statement(m, lane, lane, _itself)
        if rest:
            with T.vectorized(self.width) as lane:

                def real(x: Expr, other: Expr = 0.0) -> Expr:
                    return T.Select(lane < rest, x, T.float32(other))

                statement(whole, lane, lane, real)

    def each_lane(self, b: Expr, statement: Callable[[Expr, Expr], None]) -> None:
        """Emits statement(lane, lane) for every lane."""
        with T.vectorized(self.width) as lane:
            statement(lane, lane)

    def scratch(self, features: int) -> Buffer:
        """A buffer for the rows of some features."""
        return T.alloc_buffer(((features + self.width - 1) // self.width, self.width), "float32")


class Slots(_OneToken):
    """One token in buffers with one column, t = 0: slots lie in the lanes."""

    def sweep(self, b: Expr, features: int, statement: Statement) -> None:
        """Emits statement(m, 0, lane, real) for every slot m, in a lane of its vector."""
        whole, rest = features // self.width, features % self.width
        if whole:
            with T.serial(whole) as j, T.vectorized(self.width) as lane:
                statement(j * self.width + lane, 0, lane, _itself)
        if rest:
            with T.serial(rest) as lane:
                statement(whole * self.width + lane, 0, lane, _itself)

    def each_lane(self, b: Expr, statement: Callable[[Expr, Expr], None]) -> None:
        """Emits statement(0, lane) for every lane."""
        with T.vectorized(self.width) as lane:
            statement(0, lane)

    def each_token(self, b: Expr, statement: Callable[[Expr, Expr], None]) -> None:
        """Emits statement(0, 0)."""
        statement(0, 0)


def _itself(x: Expr, other: Expr = None) -> Expr:
    return x
