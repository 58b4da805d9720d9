"""Sequences whose states lie in a pool: the slot of each, how far it has come, and where its tokens are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from trellis_ops.lm.sequences.packed import Packed
from trellis_ops.lm.sequences.rows import Rows


@dataclass(frozen=True)
class Pooled:
    """N sequences, the next tokens of which a call reads.

    Attributes:
        slots: `[N]` int64, where the states of each lie in every pool, `[capacity, ...]`; no slot comes twice.
        positions: `[N]` int32, tokens that each has read. At 0 it begins, whatever its slot holds.
        fresh: int64, the sequences that begin; None for none.
        layout: where their tokens are, with a place of 0: the operators know it from `positions`.
    """

    slots: Tensor
    positions: Tensor
    fresh: Tensor | None
    layout: Rows | Packed

    @cached_property
    def state_indices(self) -> Tensor:
        """The slots as the operators read them, int32."""
        return self.slots.to(torch.int32)

    def begin(self, pools: Mapping[str, Tensor], first: Mapping[str, Tensor]) -> None:
        """Put the states `first`, `[fresh, ...]` by name, into the slots of the sequences that begin."""
        assert self.fresh is not None
        slots = self.slots[self.fresh]
        for name, pool in pools.items():
            pool.index_copy_(0, slots, first[name].to(pool.dtype))

    def load(self, pool: Tensor, first: float) -> Tensor:
        """A copy of what `pool` has of each sequence, `[N, ...]`; `first` everywhere in those that begin."""
        found = pool.index_select(0, self.slots)
        return found if self.fresh is None else found.index_fill_(0, self.fresh, first)

    def store(self, pool: Tensor, values: Tensor) -> None:
        """Put `values [N, ...]` into the slots of the sequences."""
        pool.index_copy_(0, self.slots, values.to(pool.dtype))
