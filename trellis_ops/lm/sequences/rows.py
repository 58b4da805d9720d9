"""Sequences of one length, all at one position in their chunks: the rows of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trellis_ops.lm.sequences.parts import Part, parts_of_rows
from trellis_ops.lm.state.place import Place, moved


@dataclass(frozen=True)
class Rows:
    """B sequences of T tokens.

    Attributes:
        batch, length: B and T.
        place: tokens of the chunk under way that were read before.
        period: tokens after which chunks begin, 1 where none are kept.
    """

    batch: int
    length: int
    place: int
    period: int

    @property
    def cu_seqlens(self) -> None:
        """Offsets, which rows have none of."""
        return None

    def after(self) -> Place:
        """Where the rows are after their tokens."""
        return moved(self.place, self.length, self.period)

    def window(self, tails: Tensor | None, x: Tensor, kept: int) -> Tensor:
        """x `[B, T, channels]` behind the `kept` inputs before it, `tails [B, kept, channels]`, or zeros."""
        before = x.new_zeros(x.shape[0], kept, x.shape[-1]) if tails is None else tails.to(x.dtype)
        return torch.cat([before, x], 1)

    def at_tokens(self, convolved: Tensor) -> Tensor:
        """What belongs to the tokens of a convolution of `window`."""
        return convolved

    def tails(self, window: Tensor) -> Tensor:
        """The inputs that the tokens after these see, `[B, kept, channels]`; they share no memory with `window`."""
        return window[:, self.length :].clone()

    def parts(self, stepwise: bool = False) -> Sequence[Part]:
        """The tokens in the order in which they are read; `stepwise` reads those of the last chunk one by one."""
        return list(parts_of_rows(self.length, self.place, self.period, stepwise))

    def as_tokens(self, y: Tensor) -> Tensor:
        """What a step gave, `[B, ...]`, as `[B, 1, ...]`."""
        return y[:, None]

    def joined(self, found: Sequence[Tensor], stepwise: bool = False) -> Tensor:
        """`[B, T, ...]` of what was found for the tokens of `parts`, in their order."""
        return found[0] if len(found) == 1 else torch.cat(list(found), 1)
