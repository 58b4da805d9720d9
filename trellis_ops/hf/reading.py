"""How blocks read the positions of one call: token by token where they can, and rows without a token not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trellis_ops.lm.block import Block
from trellis_ops.lm.features import StateKind, features
from trellis_ops.lm.state import TrellisState

Read = tuple[Tensor, TrellisState | None]

Fused = Callable[[Tensor, TrellisState], Tensor | None]
"""What kernels of whole blocks make of a token, `[B, width]`, which is overwritten, moving a state; or None."""


def read(
    blocks: Sequence[Block],
    kind: StateKind,
    x: Tensor,
    state: TrellisState | None,
    mask: Tensor | None,
    starts: Tensor | None,
    *,
    return_state: bool,
    fused: Fused | None = None,
) -> Read:
    """What the last block makes of embeddings, and the state after them.

    Args:
        blocks, kind: as `trellis_ops.lm.features.features` takes them.
        x: `[B, T, width]`.
        state: where to go on; one token moves it in place, more leave it as it was.
        mask: which positions are tokens, `[B, T]` bool; None for all.
        starts: where samples begin that were packed into the rows, laid end to end; None for one sample a row.
        return_state: whether to return the state.
        fused: stands for `blocks` where one token is read and there are kernels for it.

    Raises:
        What `features` raises.
    """
    if starts is not None:
        y, _ = features(blocks, kind, x.flatten(0, 1)[None], cu_seqlens=starts, return_state=False)
        return y.view(x.shape), None
    if mask is not None and not bool(mask.any(1).all()):
        return _some_rows(blocks, kind, x, state, mask, return_state=return_state)
    if mask is None and state is not None and x.shape[1] == 1 and _may_step(blocks):
        return _step(blocks, kind, x, state, fused), state
    return features(blocks, kind, x, state, mask, return_state=return_state)


def _step(blocks: Sequence[Block], kind: StateKind, x: Tensor, state: TrellisState, fused: Fused | None) -> Tensor:
    if state.fits is not kind or state.batch != x.shape[0]:
        kind.check(state, blocks, x, x.shape[0])
    y = None if fused is None else fused(x[:, 0].clone(memory_format=torch.contiguous_format), state)
    if y is None:
        y, begins = x[:, 0], state.begins()
        for block, layer in zip(blocks, state.layers, strict=True):
            y = block.step(y, layer, begins)
    state.advance(1, kind.period)
    return y[:, None]


def _may_step(blocks: Sequence[Block]) -> bool:
    """Whether nothing needs the forward of a block: no gradient, and no hook of accelerate that loads its weights."""
    hooked = any(hasattr(module, "_hf_hook") for block in blocks for module in (block, block.mixer))
    return not torch.is_grad_enabled() and not hooked


def _some_rows(
    blocks: Sequence[Block], kind: StateKind, x: Tensor, state: TrellisState | None, mask: Tensor, *, return_state: bool
) -> Read:
    """As `read`, where rows have no token here: they keep their state, and zeros are their outputs."""
    if state is None and return_state:
        state = kind.state([block.mixer.first_state(x.shape[0], x) for block in blocks], 0)
    has_tokens = mask.any(1).cpu()
    reading, idle = has_tokens.nonzero()[:, 0], (~has_tokens).nonzero()[:, 0]
    y = torch.zeros_like(x)
    if not len(reading):
        return y, state
    rows = reading.to(x.device)
    before = None if state is None else state.select(reading)
    found, after = features(blocks, kind, x[rows], before, mask[rows], return_state=return_state)
    y = y.index_copy(0, rows, found)
    if after is None or state is None:
        return y, None
    together = TrellisState.concatenate([after, state.select(idle)])
    return y, together.select(torch.cat([reading, idle]).argsort())
