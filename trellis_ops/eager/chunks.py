"""Tokens laid out by chunk, and the decay between the tokens of a chunk."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_LOWEST_LOG_DECAY = -1e3
"""exp of it is zero in float64; a log of -inf would turn the differences of its sums into NaN."""


def split(x: Tensor, chunk: int) -> Tensor:
    """View `[B, T, H, ...]` as `[B, H, N, C, ...]` with N = ceil(T / C), padded with zeros where C does not divide T.

    Zeros are harmless: a padded token writes u 0^T under a forget gate of exp(0).
    """
    ragged = x.shape[1] % chunk
    if ragged:
        x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, chunk - ragged))
    return torch.unflatten(x, 1, (-1, chunk)).movedim(3, 1)


def pack(*tensors: Tensor) -> Tensor:
    """Contiguous `[P x B x H, ...]` copy of P tensors `[B, H, ...]`."""
    return torch.stack(tensors).flatten(0, 2)


def merge(x: Tensor, batch: int) -> Tensor:
    """View `[B x H, N, C, D]` as `[B, N, C, H, D]`, the order of tokens."""
    return torch.unflatten(x, 0, (batch, -1)).movedim(1, 3)


class Decay(NamedTuple):
    """How much of a write, or of the chunk's first state, is left later in the chunk.

    With L_j the sum of log beta over the chunk's tokens up to and including j:

    Attributes:
        between: `[..., C, C]`, Omega: exp(L_j - L_i) at row j and column i <= j, else 0.
        since_start: `[..., C, 1]`, exp(L_j).
        until_end: `[..., C, 1]`, exp(L_C - L_j).
        whole: `[..., 1, 1]`, exp(L_C).
    """

    between: Tensor
    since_start: Tensor
    until_end: Tensor
    whole: Tensor


def decay(log_decay: Tensor, dtype: torch.dtype) -> Decay:
    """The decay inside every chunk of log_decay `[..., C]`, in `dtype`.

    The sums are float64: after strong forgetting they are large, and Omega needs their small differences.
    """
    total = log_decay.to(torch.float64).clamp_min(_LOWEST_LOG_DECAY).cumsum(dim=-1).unsqueeze(-1)
    chunk = log_decay.shape[-1]
    # Masked before the exponential: above the diagonal it may overflow, and inf * 0 is NaN. On the diagonal L_j - L_j
    # is constant; its gradients would cancel, but for a rounding larger than the others after strong forgetting.
    future = torch.full((chunk, chunk), float("-inf"), dtype=dtype, device=log_decay.device).triu(1)
    past = torch.ones(chunk, chunk, dtype=torch.bool, device=log_decay.device).tril(-1)
    between = torch.where(past, (total - total.mT).to(dtype), future).exp()
    since_start = total.exp().to(dtype)
    return Decay(between, since_start, between[..., -1:, :].mT, since_start[..., -1:, :])
