"""One decode step of sequences whose states lie in pools, by the kernel of a whole block for each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from trellis_ops.lm.block import Block
from trellis_ops.lm.decode.decoder import Decoder, Model, increment_version, ready
from trellis_ops.lm.sequences import Pooled, Rows

Pools = Mapping[str, Tensor]
"""The tensors of a layer's state by name, `[capacity, ...]`, as `TokenMixer.pooled` takes them."""


def fused_pooled(model: Model, weights: str, x: Tensor, layers: Sequence[Pools], sequences: Pooled) -> Tensor | None:
    """What the last block makes of one token of each sequence; None, and nothing was written, without kernels.

    Args:
        model: whose step it is; its `step_parts` have no output.
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
    if found is None or not _are_slots(sequences, layers):
        return None
    decoder, kernels = found
    states = [_states(decoder, index, pools) for index, pools in enumerate(layers)]
    if not all(states):
        return None
    narrow, x, where = x.dtype, x.float().contiguous(), _where(decoder, sequences)
    for index, pools in enumerate(layers):
        if sequences.fresh is not None:
            first = cast(Block, decoder.modules[index]).mixer.first_state(len(sequences.fresh), x)
            sequences.begin(pools, first.tensors())
        packed = decoder.blocks[index]
        try:
            kernels.block(x.shape[0], x, *where, *states[index], packed.weights, packed.vectors)
        finally:
            increment_version(states[index])
        if narrow != torch.float32 and "tail" in pools:
            # The modules of such a model keep its inputs rounded.
            sequences.store(pools["tail"], pools["tail"].index_select(0, sequences.slots).to(narrow))
    return x.to(narrow)


def _are_slots(sequences: Pooled, layers: Sequence[Pools]) -> bool:
    """Whether every sequence is a row of one token with a slot: kernels of blocks skip none."""
    low, high = torch.aminmax(sequences.slots)
    capacity = min(len(pool) for pools in layers for pool in pools.values())
    one_token = isinstance(sequences.layout, Rows) and sequences.layout.length == 1
    return one_token and int(low) >= 0 and int(high) < capacity and int(sequences.positions.min()) >= 0


def _where(decoder: Decoder, sequences: Pooled) -> tuple[Tensor, ...]:
    """The positions of the rows, where chunks have a start, and their slots, as kernels take them."""
    slots = sequences.slots.contiguous()
    return (sequences.positions.to(torch.int64), slots) if decoder.config.keeps_starts else (slots,)


def _states(decoder: Decoder, index: int, pools: Pools) -> tuple[Tensor, ...]:
    """The pools of a layer in the order of its kernel; none where it might refuse them after others have moved theirs.

    What was found of a layer is kept with where its pools lie, so that each is looked at once.
    """
    tensors = tuple([pools[name] for name in decoder.states if name in pools])
    places = tuple([(each.data_ptr(), each.shape, each.stride()) for each in tensors])
    if decoder.pools.get(index) != places:
        shapes = cast(Block, decoder.modules[index]).mixer.state_shapes(1)
        if pools.keys() != shapes.keys() or len({len(each) for each in tensors}) > 1:
            return ()
        if not all(_is_pool(each, shapes[name]) for name, each in pools.items()) or not _lie_apart(tensors):
            return ()
        decoder.pools[index] = places
    return tensors


def _is_pool(tensor: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is a pool of states of a shape `[1, ...]`, each without gaps."""
    dense = torch.empty(shape, device="meta").stride()
    is_plain = type(tensor) is Tensor and tensor.dtype == torch.float32 and tensor.device.type == "cpu"
    return is_plain and tensor.shape[1:] == shape[1:] and tensor.stride()[1:] == dense[1:]


def _lie_apart(tensors: Sequence[Tensor]) -> bool:
    """Whether no two slots of the pools of a layer share memory: pools lie one after another, or their slots do."""
    ordered = sorted(tensors, key=Tensor.data_ptr)
    starts, slots = [each.data_ptr() for each in ordered], [each[0].nbytes for each in ordered]
    apart = [each.stride(0) * each.itemsize for each in ordered]
    if any(slot > step for slot, step in zip(slots, apart, strict=True)):
        return False
    spans = [(len(each) - 1) * step + slot for each, step, slot in zip(ordered, apart, slots, strict=True)]
    if all(start + span <= end for start, span, end in zip(starts, spans, starts[1:], strict=False)):
        return True
    ends = (*starts[1:], starts[0] + apart[0])
    return len(set(apart)) == 1 and all(
        start + slot <= end for start, slot, end in zip(starts, slots, ends, strict=True)
    )
