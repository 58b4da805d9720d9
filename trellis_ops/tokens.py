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

    Shapes: q, k `[B, T, H, D_k]`; v `[B, T, H, D_v]`; alpha `[B, T, H, M]`; log_beta, gamma `[B, T, H]`; a single token
    has no T.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    alpha: Tensor
    log_beta: Tensor
    gamma: Tensor

    @classmethod
    def of(
        cls,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        alpha: Tensor,
        log_beta: Tensor,
        gamma: Tensor,
        dtype: torch.dtype,
    ) -> Tokens:
        """The tensors cast to `dtype`, a gamma of shape `[H]` repeated for every token."""
        q, k, v, alpha, log_beta, gamma = (x.to(dtype) for x in (q, k, v, alpha, log_beta, gamma))
        return cls(q, k, v, alpha, log_beta, gamma.expand(log_beta.shape))

    def each(self, function: Callable[[Tensor], Tensor]) -> Tokens:
        """The result of `function` on each of the six."""
        return Tokens(*(function(x) for x in self))
