"""One decode step of sequences whose states lie in pools, by the kernel of a whole block for each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from trellis_ops.lm.block import Block
from trellis_ops.lm.decode.applies import Model
from trellis_ops.lm.decode.decoder import Decoder, Kernels, increment_version, ready
from trellis_ops.lm.decode.held_pools import HeldPools, Pools, hold
from trellis_ops.lm.sequences import Pooled, Rows


def fused_pooled(model: Model, weights: str, x: Tensor, layers: Sequence[Pools], sequences: Pooled) -> Tensor | None:
    """What the last block makes of one token of each sequence; None, and nothing was written, without kernels.

    Args:
        model: whose step it is.
        weights: the type to pack its weights in, see `trellis_ops.lm.decode.decoder.fused_step`.
        x: the embeddings of the tokens, `[N, width]`; overwritten where they are float32.
        layers: the pools of each layer, whose slots of these sequences move in place.
        sequences: rows of one token, each on its slot.

    Returns:
        `[N, width]` of the type of `x`.

    Raises:
        TrellisError: a kernel does not compile.
    """
    found = ready(model, weights, x, pooled=True)
    if found is None or not _is_one_token(sequences):
        return None
    decoder, kernels = found
    held = [_held(decoder, kernels, index, pools) for index, pools in enumerate(layers)]
    known = [each for each in held if each is not None]
    if len(known) < len(held) or not _are_slots(sequences, min(each.capacity for each in known)):
        return None
    narrow, x, where = x.dtype, x.float().contiguous(), _where(decoder, sequences)
    for index, (own, pools) in enumerate(zip(known, layers, strict=True)):
        if sequences.fresh is not None:
            first = cast(Block, decoder.modules[index]).mixer.first_state(len(sequences.fresh), x)
            sequences.begin(pools, first.tensors())
        try:
            kernels.block(x.shape[0], x, *where, *own.arguments)
        finally:
            increment_version(own.tensors)
        if narrow != torch.float32 and "tail" in pools:
            # The modules of such a model keep its inputs rounded.
            sequences.store(pools["tail"], pools["tail"].index_select(0, sequences.slots).to(narrow))
    return x.to(narrow)


def fused_logits(model: Model, weights: str, x: Tensor) -> Tensor | None:
    """Logits `[N, vocabulary]` of what `fused_pooled` gave, `[N, width]`, float32; None without a kernel.

    Its `step_parts` have an output.

    Raises:
        TrellisError: a kernel does not compile.
    """
    found = ready(model, weights, x, pooled=True) if x.dtype == torch.float32 else None
    if found is None or found[1].logits is None:
        return None
    decoder, kernels = found
    return decoder.logits_of(kernels, x.contiguous())


def _is_one_token(sequences: Pooled) -> bool:
    return isinstance(sequences.layout, Rows) and sequences.layout.length == 1


def _are_slots(sequences: Pooled, capacity: int) -> bool:
    """Whether every sequence has a slot of the pools: kernels of blocks skip none."""
    # Lists of some numbers are looked through faster than tensors.
    slots: list[int] = sequences.slots.tolist()
    positions: list[int] = sequences.positions.tolist()
    return min(slots) >= 0 and max(slots) < capacity and min(positions) >= 0


def _held(decoder: Decoder, kernels: Kernels, index: int, pools: Pools) -> HeldPools | None:
    """The pools of a layer as its kernel takes them; they stay with the decoder, so that each is looked at once."""
    known = decoder.pools.get(index)
    if known is not None and known.are(pools):
        return known
    packed, shapes = decoder.blocks[index], cast(Block, decoder.modules[index]).mixer.state_shapes(1)
    made = hold(kernels.block, pools, shapes, decoder.states, (packed.weights, packed.vectors))
    if made is not None:
        decoder.pools[index] = made
    return made


def _where(decoder: Decoder, sequences: Pooled) -> tuple[Tensor, ...]:
    """The positions of the rows, where chunks have a start, and their slots, as kernels take them."""
    slots = sequences.slots.contiguous()
    return (sequences.positions.to(torch.int64), slots) if decoder.config.keeps_starts else (slots,)
