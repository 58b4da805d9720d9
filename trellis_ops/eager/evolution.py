"""Memories run through the chunks of a sequence, and what is read of them; equations in `trellis_ops.eager.forward`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from codegen.rule import Rule
from trellis_ops.eager import chunks
from trellis_ops.eager.chunks import Decay
from trellis_ops.eager.maps import inner_gradient
from trellis_ops.tokens import Tokens


class Evolved(NamedTuple):
    """What became of both memories, each pair in their order.

    Shapes: starts, the chunk-start states, `[B x H, N, M, D]`; codes `[B x H, N, C, M]`; scaled, which is gamma w,
    `[B x H, N, C, D]`; finals, the last states, `[B x H, M, D]`.
    """

    starts: list[Tensor]
    codes: list[Tensor]
    scaled: list[Tensor]
    finals: list[Tensor]


def evolve(split: Tokens, decay: Decay, states: list[Tensor], rule: Rule, first_order: bool) -> Evolved:
    """Run both memories through the chunks, side by side where their shapes allow it.

    Args:
        split: tokens by chunk, `[B, H, N, C, ...]`.
        decay: inside each chunk, `[B x H, N, ...]`.
        states: the first ones, `[B x H, M, D_k]` and `[B x H, M, D_v]`.
    """
    target, step_size = chunks.pack(split.target), chunks.pack(split.step_size).unsqueeze(-1)
    side_by_side = ((split.k, split.v),) if split.k.shape == split.v.shape else ((split.k,), (split.v,))
    found = Evolved([], [], [], [])
    for writes in side_by_side:
        count, first = len(writes), len(found.starts)
        state = torch.cat(states[first : first + count]) if count > 1 else states[first]
        results = of_memories(chunks.pack(*writes), target, step_size, decay, state, rule, first_order)
        for memory, result in zip(found, results, strict=True):
            memory.extend(result.chunk(count))
    return found


def of_memories(
    w: Tensor, target: Tensor, step_size: Tensor, decay: Decay, state: Tensor, rule: Rule, first_order: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run P memories side by side through the chunks.

    Args:
        w: `[P x B x H, N, C, D]`.
        target: `[B x H, N, C, M]`.
        step_size: `[B x H, N, C, 1]`.
        state: `[P x B x H, M, D]`.

    Returns:
        The chunk-start states `[P x B x H, N, M, D]`, the codes `[P x B x H, N, C, M]`, gamma w, the last state.
    """
    memories = (-1, *target.shape[:1])
    scaled = (torch.unflatten(w, 0, memories) * step_size).flatten(0, 1)
    faded = (torch.unflatten(w, 0, memories) * (step_size * decay.until_end)).flatten(0, 1)
    whole = decay.whole.repeat(w.shape[0] // target.shape[0], 1, 1, 1)
    write = _write_token if w.shape[2] == 1 else _write_chunk
    starts, codes = [], []
    for w_n, faded_n, target_n, whole_n in zip(*(x.unbind(1) for x in (w, faded, target, whole)), strict=True):
        starts.append(state)
        z = torch.bmm(w_n, state.mT)
        z = torch.unflatten(z.detach() if first_order else z, 0, memories)
        u = inner_gradient(rule.phi, z, target_n, rule.phi_eps).flatten(0, 1)
        codes.append(u)
        state = write(whole_n * state, u.mT, faded_n)
    return torch.stack(starts, dim=1), torch.stack(codes, dim=1), scaled, state


def _write_chunk(kept: Tensor, codes: Tensor, faded: Tensor) -> Tensor:
    return torch.baddbmm(kept, codes, faded, alpha=-1)


def _write_token(kept: Tensor, code: Tensor, faded: Tensor) -> Tensor:
    # A matrix product with an inner dimension of one costs three times this broadcast.
    return torch.addcmul(kept, code, faded, value=-1)


def readout(read: Tensor, keys: Tensor, values: Tensor, starts: Tensor, decay: Decay) -> Tensor:
    """diag(exp L) read starts - [(read keys^T) * Omega] values, in all chunks at once."""
    read, keys, values, starts, between, since_start = (
        x.flatten(0, 1) for x in (read, keys, values, starts, decay.between, decay.since_start)
    )
    scores = torch.bmm(read, keys.mT) * between
    first = torch.bmm(read, starts) * since_start
    return torch.unflatten(torch.baddbmm(first, scores, values, alpha=-1), 0, decay.between.shape[:2])
