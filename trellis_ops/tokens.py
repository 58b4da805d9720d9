"""The six tensors that describe tokens, kept together."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

States = tuple[Tensor, Tensor]
"""The pair (S_k, S_v) of memories."""


class Tokens(NamedTuple):
    """What a memory reads and writes.

    Shapes: q, k `[B, T, H, D_k]`; v `[B, T, H, D_v]`; target `[B, T, H, M]`; log_decay, step_size `[B, T, H]`; a
    single token has no T.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    target: Tensor
    log_decay: Tensor
    step_size: Tensor

    @classmethod
    def of(
        cls,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        target: Tensor,
        log_decay: Tensor,
        step_size: Tensor,
        dtype: torch.dtype,
    ) -> Tokens:
        """The tensors cast to `dtype`, a step_size of shape `[H]` repeated for every token."""
        q, k, v, target, log_decay, step_size = (x.to(dtype) for x in (q, k, v, target, log_decay, step_size))
        return cls(q, k, v, target, log_decay, step_size.expand(log_decay.shape))

    def each(self, function: Callable[[Tensor], Tensor]) -> Tokens:
        """The result of `function` on each of the six."""
        return Tokens(*(function(x) for x in self))
