"""Packed sequences as padded batches (fla's convention: B = 1, `cu_seqlens` holds N + 1 offsets)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

from codegen.spec import next_power_of_two
from trellis_ops.tokens import States, Tokens

Run = Callable[[Tokens, States], tuple[Tensor, States]]
"""Run a batch of sequences of one length: tokens `[n, T, H, ...]`, states `[n, H, M, D]` to y and the last states."""


def run(tokens: Tokens, states: States, cu_seqlens: Tensor, run_batch: Run) -> tuple[Tensor, States]:
    """Run every packed sequence on its own, those of similar length as one batch.

    Args:
        tokens: `[1, T, H, ...]`.
        states: `[N, H, M, D_k]` and `[N, H, M, D_v]`.
        cu_seqlens: `[N + 1]`.
        run_batch: what to do with a batch.

    Returns:
        y `[1, T, H, D_v]` and the last states, in the order of the sequences.
    """
    device = tokens.q.device
    offsets = cu_seqlens.tolist()
    outputs, places, order, finals_k, finals_v = [], [], [], [], []
    for members in similar_lengths(offsets):
        starts = torch.tensor([offsets[n] for n in members], device=device).unsqueeze(-1)
        ends = torch.tensor([offsets[n + 1] for n in members], device=device).unsqueeze(-1)
        longest = max(1, *(offsets[n + 1] - offsets[n] for n in members))
        place = starts + torch.arange(longest, device=device)
        inside = place < ends
        batch = Tokens(*(_padded(x, place, inside) for x in tokens))
        chosen = torch.tensor(members, device=device)
        y, (s_k, s_v) = run_batch(batch, (states[0][chosen], states[1][chosen]))
        outputs.append(y[inside])
        places.append(place[inside])
        order.append(chosen)
        finals_k.append(s_k)
        finals_v.append(s_v)
    y = torch.cat(outputs)[torch.cat(places).argsort()].unsqueeze(0)
    back = torch.cat(order).argsort()
    return y, (torch.cat(finals_k)[back], torch.cat(finals_v)[back])


def similar_lengths(offsets: list[int]) -> list[list[int]]:
    """Sequence numbers grouped by length rounded up to a power of two, so that at most half of a batch is padding.

    Example:
        >>> similar_lengths([0, 3, 10, 14, 14, 19])
        [[0, 2], [1, 4], [3]]
    """
    groups: dict[int, list[int]] = defaultdict(list)
    for n in range(len(offsets) - 1):
        groups[next_power_of_two(max(1, offsets[n + 1] - offsets[n]))].append(n)
    return list(groups.values())


def _padded(x: Tensor, place: Tensor, inside: Tensor) -> Tensor:
    """x `[1, T, H, ...]` at `place` `[n, longest]`, zero outside the sequence."""
    rows = x[0][place.clamp_max(x.shape[1] - 1)]
    return rows.masked_fill(~inside.view(*inside.shape, *(1,) * (rows.dim() - 2)), 0)
