"""How far a call reaches, and the limits of what kernels count."""

from __future__ import annotations

from dataclasses import dataclass

MOST = 2**31 - 1
"""The largest number of 32 bits with a sign: kernels count tokens, programs and kept states in them."""

MOST_SEGMENTS = 32
"""Parts that variant `pair` walks a sequence in, at most."""


@dataclass(frozen=True)
class Extent:
    """How much a call walks.

    Attributes:
        tokens: of all sequences, B x T.
        heads: H.
        sequences: N.
        chunks: chunk-start states of one head, or of a backward those that it keeps.
        most_chunks: those of the longest sequence.
    """

    tokens: int
    heads: int
    sequences: int
    chunks: int
    most_chunks: int
