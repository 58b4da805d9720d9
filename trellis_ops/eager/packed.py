"""Packed sequences as padded batches (fla's convention: B = 1, `cu_seqlens` holds N + 1 offsets)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from codegen.spec import next_power_of_two

Tensors = Sequence[Tensor]
Run = Callable[[Tensors, Tensors], tuple[Tensors, Tensors]]
"""Run a batch of sequences of one length: tensors `[n, T, H, ...]` and `[n, H, ...]` to results of these two kinds."""


def run(
    tokens: Tensors, states: Tensors, cu_seqlens: Tensor, run_batch: Run, idle: Tensors
) -> tuple[list[Tensor], list[Tensor]]:
    """Run every packed sequence on its own, those of similar length as one batch.

    Args:
        tokens: each `[1, T, H, ...]`.
        states: each `[N, H, ...]`.
        cu_seqlens: `[N + 1]`.
        run_batch: what to do with a batch.
        idle: the results for the states of sequences without tokens, `[N, H, ...]`.

    Returns:
        The results for tokens `[1, T, H, ...]`, and those for states `[N, H, ...]` in the order of the sequences.
    """
    device = tokens[0].device
    offsets = cu_seqlens.tolist()
    places, order, token_parts, state_parts = [], [], [], []
    for members in similar_lengths(offsets):
        starts = torch.tensor([offsets[n] for n in members], device=device).unsqueeze(-1)
        ends = torch.tensor([offsets[n + 1] for n in members], device=device).unsqueeze(-1)
        longest = max(offsets[n + 1] - offsets[n] for n in members)
        chosen = torch.tensor(members, device=device)
        order.append(chosen)
        if longest == 0:
            state_parts.append([s[chosen] for s in idle])
            continue
        place = starts + torch.arange(longest, device=device)
        inside = place < ends
        of_tokens, of_states = run_batch([_padded(x, place, inside) for x in tokens], [s[chosen] for s in states])
        token_parts.append([x[inside] for x in of_tokens])
        state_parts.append(list(of_states))
        places.append(place[inside])
    back_tokens, back_states = torch.cat(places).argsort(), torch.cat(order).argsort()
    whole_tokens, whole_states = (
        [torch.cat(parts) for parts in zip(*kind, strict=True)] for kind in (token_parts, state_parts)
    )
    return [x[back_tokens].unsqueeze(0) for x in whole_tokens], [s[back_states] for s in whole_states]


def similar_lengths(offsets: list[int]) -> list[list[int]]:
    """Sequence numbers grouped by length rounded up to a power of two, so that at most half of a batch is padding.

    Those without tokens are a group of their own.

    Example:
        >>> similar_lengths([0, 3, 10, 14, 14, 19])
        [[0, 2], [1, 4], [3]]
    """
    groups: dict[int, list[int]] = defaultdict(list)
    for n in range(len(offsets) - 1):
        length = offsets[n + 1] - offsets[n]
        groups[next_power_of_two(length) if length else 0].append(n)
    return list(groups.values())


def _padded(x: Tensor, place: Tensor, inside: Tensor) -> Tensor:
    """x `[1, T, H, ...]` at `place` `[n, longest]`, zero outside the sequence."""
    rows = x[0][place.clamp_max(x.shape[1] - 1)]
    return rows.masked_fill(~inside.view(*inside.shape, *(1,) * (rows.dim() - 2)), 0)
