"""What stands between the products of a block in eager PyTorch: convolutions, rows of length one, norms, gates.

Source: arXiv 2512.23852, figure 1, and 2002.05202.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F


def memory_inputs(
    shared: Tensor,
    v: Tensor | None,
    taps_q: Tensor,
    taps_k: Tensor,
    tails: Tensor,
    cu_seqlens: Tensor | None,
    heads: int,
    unit_keys: bool,
    eps: float,
) -> list[Tensor]:
    """q and k `[B, T, H, D_k]`, v `[B, T, H, D_v]` of length one if it is given, and the tails `[N, W - 1, H D_k]`.

    Args:
        shared: what both convolutions read, `[B, T, H D_k]`.
        v: `[B, T, H D_v]`.
        taps_q, taps_k: `[H D_k, W]`.
        tails: the inputs before the first token of each sequence, `[N, W - 1, H D_k]`.
        cu_seqlens: offsets of N sequences packed into `[1, T]`; None for N rows.
        heads: H.
        unit_keys: whether q and k are divided by their length too.
        eps: the least that a row is divided by.
    """
    windows = [torch.cat([tail, tokens], 1) for tail, tokens in _each_sequence(shared, tails, cu_seqlens)]
    rows = [torch.cat([causal_convolution(window, taps) for window in windows], 1) for taps in (taps_q, taps_k)]
    rows = [_of_heads(row, heads) for row in rows]
    if unit_keys:
        rows = [F.normalize(row, dim=-1, eps=eps) for row in rows]
    if v is not None:
        rows.append(F.normalize(_of_heads(v, heads), dim=-1, eps=eps))
    return [*rows, torch.cat([window[:, window.shape[1] - tails.shape[1] :] for window in windows])]


def causal_convolution(window: Tensor, taps: Tensor) -> Tensor:
    """Depthwise convolution: window `[B, W - 1 + T, channels]`, taps `[channels, W]` to `[B, T, channels]`.

    A sum of W shifted products, which stays in the layout of the linear maps before and after it.
    """
    length = window.shape[1] - taps.shape[1] + 1
    # On CPUs torch vectorises a product only where what it reads lies together; taps apart take thrice as long.
    first, *others = (taps.t().contiguous() if window.device.type == "cpu" else taps.t()).unbind()
    convolved = window[:, :length] * first
    for offset, tap in enumerate(others, 1):
        convolved.addcmul_(window[:, offset : offset + length], tap)
    return convolved


def gated_norm(y: Tensor, gate: Tensor, weight: Tensor, eps: float) -> list[Tensor]:
    """RMSNorm(y) * gelu(gate), `[..., H D]`: y is `[..., H, D]`, gate `[..., H D]`, weight `[D]`."""
    return [F.rms_norm(y, weight.shape, weight, eps).flatten(-2) * F.gelu(gate)]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> list[Tensor]:
    """x / sqrt(mean x^2 + eps) * weight, of rows `[..., F]`."""
    return [F.rms_norm(x, weight.shape, weight, eps)]


def add_rms_norm(x: Tensor, more: Tensor, weight: Tensor, eps: float) -> list[Tensor]:
    """x + more, and `rms_norm` of it."""
    added = x + more
    return [added, *rms_norm(added, weight, eps)]


def swiglu_gate(gate: Tensor, up: Tensor) -> list[Tensor]:
    """silu(gate) * up, of one shape."""
    return [F.silu(gate) * up]


def _each_sequence(shared: Tensor, tails: Tensor, cu_seqlens: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Each tail and its tokens: those of all rows at once, or of packed sequences one by one."""
    if cu_seqlens is None:
        yield tails, shared
        return
    for n, (begin, end) in enumerate(itertools.pairwise(cu_seqlens.tolist())):
        yield tails[n : n + 1], shared[:, begin:end]


def _of_heads(x: Tensor, heads: int) -> Tensor:
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)
