"""The sizes that a kernel of tiles is generated for."""

from __future__ import annotations

from dataclasses import dataclass

from codegen.backends.tvm.emit.walks import Lanes


@dataclass(frozen=True)
class Tile:
    """Some tokens of one sequence and head, which a kernel processes at a time.

    Tokens past the end of a tile have w = 0, gamma = 0 and beta = 1. Buffers named _cols hold a tile transposed:
    features are rows, tokens are lanes. The rows and columns of scratch are whole vectors.

    Attributes:
        slots: M.
        chunk: C.
        tokens: of a tile.
        width: lanes of a vector.
        accumulators: vector registers that a product sums in.
        dtype: of q, k, v, target and y.
    """

    slots: int
    chunk: int
    tokens: int
    width: int
    accumulators: int
    dtype: str

    @property
    def lanes(self) -> Lanes:
        """The walk along its tokens."""
        return Lanes(self.width, 0, self.vectors)

    @property
    def vectors(self) -> int:
        """Vectors of tokens."""
        return self.tokens // self.width

    @property
    def slot_vectors(self) -> int:
        """Vectors of slots; the last may be padded."""
        return -(-self.slots // self.width)
