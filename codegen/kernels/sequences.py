"""Where sequences, and the states that are kept of them, lie among flattened tokens."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Sequences:
    """The sequences of a call; a batch is N = B of equal length, a decode step N = B of one token.

    Attributes:
        cu_seqlens: `[N + 1]` int32, offsets into the tokens.
        chunk_offsets: `[N + 1]` int32, offsets into the chunk-start states.
        chunks: number of chunk-start states to allocate.
        most_chunks: no sequence has more chunks than this.
    """

    cu_seqlens: torch.Tensor
    chunk_offsets: torch.Tensor
    chunks: int
    most_chunks: int

    @functools.cached_property
    def count(self) -> int:
        """N, the number of sequences."""
        return self.cu_seqlens.shape[0] - 1
