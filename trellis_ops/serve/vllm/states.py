"""The states in one block of vLLM's cache as a store of prefixes has them: what `TrellisLM.carried` names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trellis_ops.lm.block import Block
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.serve.vllm.block import ServedBlock


def carried_like(config: TrellisConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """What a layer of a model of type `dtype` carries at the start of a chunk: shapes `[1, ...]` and types, no data."""
    with torch.device("meta"):
        mixer = Block(config).mixer
        return mixer.carried(mixer.first_state(1, torch.empty(0, dtype=dtype)))


def taken(blocks: Sequence[ServedBlock], like: Mapping[str, Tensor], slot: int) -> dict[str, Tensor]:
    """A copy of the states in `slot`, at the start of a chunk, by name with the layer before."""
    found = {}
    for index, block in enumerate(blocks):
        pools = block.pool.states()
        for name, each in like.items():
            # A state without elements has no pool.
            state = pools[name][slot : slot + 1] if name in pools else torch.empty(each.shape)
            found[f"{index}.{name}"] = state.to(each.dtype, copy=True)
    return found


def put(blocks: Sequence[ServedBlock], tensors: Mapping[str, Tensor], slot: int) -> None:
    """Put into `slot` what `taken` found; what is kept of a chunk's start holds nothing there."""
    for index, block in enumerate(blocks):
        for name, pool in block.pool.states().items():
            found = tensors.get(f"{index}.{name}")
            pool[slot] = 0.0 if found is None else found[0].to(pool.device)
