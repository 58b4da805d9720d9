"""One decode step of sequences whose states lie in pools, by the kernel of a whole block for each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from codegen.backends import held
from trellis_ops.lm.block import Block
from trellis_ops.lm.decode.applies import MOST_ROWS, Model
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
    return None if found is None else through_pools(*found, x, layers, sequences)


def through_pools(
    decoder: Decoder, kernels: Kernels, x: Tensor, layers: Sequence[Pools], sequences: Pooled
) -> Tensor | None:
    """As `fused_pooled`, of a model that was looked at; `decoder` and `kernels` are those of as many rows as x has."""
    pools = _held(decoder, kernels, layers) if _is_one_token(sequences) else None
    if pools is None or not _are_slots(sequences, pools.capacity):
        return None
    narrow, x = x.dtype, x.float().contiguous()
    if sequences.fresh is not None:
        _begin(decoder, layers, sequences, x)
    block = kernels.block
    rows = (x.shape[0], *[held(block, each) for each in (x, *_where(decoder, sequences))])
    try:
        for arguments in pools.layers:
            block(*rows, *arguments)
    finally:
        increment_version(pools.tensors)
    if narrow != torch.float32:
        _round_tails(layers, sequences, narrow)
    return x.to(narrow)


def pooled_logits(decoder: Decoder, x: Tensor) -> Tensor | None:
    """Logits `[N, vocabulary]` of rows that `through_pools` gave, `[N, width]`, float32; None without a kernel.

    Raises:
        TrellisError: a kernel does not compile.
    """
    if x.dtype != torch.float32 or x.shape[0] > MOST_ROWS:
        return None
    kernels = decoder.kernels_for(x.shape[0], pooled=True)
    return None if kernels is None or kernels.logits is None else decoder.logits_of(kernels, x.contiguous())


def _is_one_token(sequences: Pooled) -> bool:
    return isinstance(sequences.layout, Rows) and sequences.layout.length == 1


def _are_slots(sequences: Pooled, capacity: int) -> bool:
    """Whether every sequence has a slot of the pools: kernels of blocks skip none."""
    # Lists of some numbers are looked through faster than tensors.
    slots: list[int] = sequences.slots.tolist()
    positions: list[int] = sequences.positions.tolist()
    return min(slots) >= 0 and max(slots) < capacity and min(positions) >= 0


def _held(decoder: Decoder, kernels: Kernels, layers: Sequence[Pools]) -> HeldPools | None:
    """The pools as kernels take them; they stay with the decoder, so that each is looked at once."""
    if decoder.pools is None or not decoder.pools.are(layers):
        shapes = [cast(Block, block).mixer.state_shapes(1) for block in decoder.modules]
        packed = [(each.weights, each.vectors) for each in decoder.blocks]
        decoder.pools = hold(kernels.block, layers, shapes, decoder.states, packed)
    return decoder.pools


def _begin(decoder: Decoder, layers: Sequence[Pools], sequences: Pooled, like: Tensor) -> None:
    """Put the first states of the sequences that begin into their slots."""
    assert sequences.fresh is not None
    for block, pools in zip(decoder.modules, layers, strict=True):
        first = cast(Block, block).mixer.first_state(len(sequences.fresh), like)
        sequences.begin(pools, first.tensors())


def _where(decoder: Decoder, sequences: Pooled) -> tuple[Tensor, ...]:
    """The positions of the rows, where chunks have a start, and their slots, as kernels take them."""
    slots = sequences.slots.contiguous()
    return (sequences.positions.to(torch.int64), slots) if decoder.config.keeps_starts else (slots,)


def _round_tails(layers: Sequence[Pools], sequences: Pooled, narrow: torch.dtype) -> None:
    """Round the tails to `narrow`: the modules of such a model keep the inputs of convolutions in its type."""
    for pools in layers:
        if "tail" in pools:
            sequences.store(pools["tail"], pools["tail"].index_select(0, sequences.slots).to(narrow))
