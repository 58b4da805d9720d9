"""A tile of tokens, and how a block's threads share out what it takes."""

from __future__ import annotations

from dataclasses import dataclass

from codegen.backends.tvm_cuda.emit.threads import Threads


@dataclass(frozen=True)
class Tile(Threads):
    """Tokens of one sequence and head, which the threads of a block process at a time.

    Tokens past the end of a tile have w = 0, gamma = 0 and beta = 1. Matrices in shared memory are padded with zeros to
    whole blocks of a product, so that no product needs a mask.

    Attributes:
        slots: M.
        tokens: of a tile.
        unit: matrices are padded to multiples of so many rows and columns.
        rows, columns: outputs of a product that a thread sums at once.
        dots: what multiplies, as `codegen.schedules.tvm_fields.TvmFields.dot_precision` says.
    """

    slots: int
    tokens: int
    unit: int
    rows: int
    columns: int
    dots: str

    def padded(self, count: int) -> int:
        """`count` rows or columns with their padding."""
        return -(-count // self.unit) * self.unit
