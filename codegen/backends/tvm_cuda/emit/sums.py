"""What every way to multiply matrices in shared memory has: the outputs that a thread sums, and who adds them up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from codegen.backends.tvm.emit.expressions import Buffer, Expr
from codegen.backends.tvm_cuda.emit.tile import Tile


@dataclass(frozen=True)
class Outputs:
    """The outputs of a product that a thread sums at once, in `rows x columns` registers.

    Attributes:
        rows: where they lie.
        columns: where they lie; for tensor cores the thread's columns of the second operand, one of every eight.
        pair: for tensor cores, the first of the two neighbours of eight that are the thread's.
    """

    rows: Sequence[Expr]
    columns: Sequence[Expr]
    pair: Expr = 0


Compute = Callable[[Buffer, Outputs], None]
"""What is emitted to add up some outputs."""

Store = Callable[[Expr, Expr, Expr], None]
"""What is emitted at a row and column, with the sum there."""


class Multiplier(Protocol):
    """A module that multiplies matrices in shared memory.

    `adjacent` says that the second operand is read along the thread's columns, side by side.
    """

    def product(self, tile: Tile, rows: int, columns: int, compute: Compute, store: Store, *, adjacent: bool) -> None:
        """Emits store(row, column, sum) for all outputs; compute(sums, outputs) adds up those of one thread."""

    def add_by_rows(self, tile: Tile, sums: Buffer, at: Outputs, X: Buffer, Y: Buffer, depth: int) -> None:
        """Emits sums += X Y^T: both are read along their rows."""

    def add_by_columns(
        self, tile: Tile, sums: Buffer, at: Outputs, X: Buffer, Y: Buffer, depth: Expr, *, adjacent: bool
    ) -> None:
        """Emits sums += X Y; depth may be an expression, a multiple of what `up_to` rounds to."""

    def add_by_tokens(self, tile: Tile, sums: Buffer, at: Outputs, X: Buffer, Y: Buffer, depth: int) -> None:
        """Emits sums += X^T Y."""

    def up_to(self, at: Outputs) -> Expr:
        """How many tokens the last of the rows may see, rounded up to what a product takes at once."""
