"""The pools of the states of all layers as the kernels of blocks take them, looked at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any

import torch
from torch import Tensor

from codegen.backends import Kernel, held

Pools = Mapping[str, Tensor]
"""The tensors of a layer's state by name, `[capacity, ...]`, as `TokenMixer.pooled` takes them."""


@dataclass(frozen=True)
class HeldPools:
    """Pools that kernels take.

    Attributes:
        names: of each layer's pools, in the order in which they were given.
        given: the pools of all layers, likewise.
        places: where their memory began, and how many numbers it had.
        tensors: the same pools in the order of the kernel.
        capacity: slots that every layer has.
        layers: of each layer what its kernel takes behind the rows and their slots: its pools, and `further` tensors.
    """

    names: list[tuple[str, ...]]
    given: list[Tensor]
    places: tuple[tuple[int, ...], tuple[int, ...]]
    tensors: tuple[Tensor, ...]
    capacity: int
    layers: tuple[tuple[Any, ...], ...]

    def are(self, layers: Sequence[Pools]) -> bool:
        """Whether these are the same pools, in the same memory."""
        if list(map(tuple, layers)) != self.names:
            return False
        return all(map(is_, _flat(layers), self.given)) and _places(self.given) == self.places


def hold(
    kernel: Kernel,
    layers: Sequence[Pools],
    shapes: Sequence[Mapping[str, tuple[int, ...]]],
    order: Sequence[str],
    further: Sequence[Sequence[Tensor]],
) -> HeldPools | None:
    """The pools as `kernel` takes them; None where it might refuse those of one layer after another was moved.

    Args:
        kernel: of a block.
        layers: pools of each layer by name.
        shapes: of the states of one sequence in each layer by name, `[1, ...]`.
        order: the names in the order of the kernel.
        further: what it takes of each layer behind the pools.
    """
    ordered = [tuple(pools[name] for name in order if name in pools) for pools in layers]
    if not all(map(_are_taken, layers, ordered, shapes)):
        return None
    arguments = tuple(
        tuple(held(kernel, each) for each in (*tensors, *own)) for tensors, own in zip(ordered, further, strict=True)
    )
    given, tensors = _flat(layers), tuple(tensor for own in ordered for tensor in own)
    return HeldPools(list(map(tuple, layers)), given, _places(given), tensors, min(map(len, tensors)), arguments)


def _are_taken(pools: Pools, ordered: Sequence[Tensor], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a kernel takes the pools of a layer, `ordered` as it does: of one capacity, none in another's place."""
    if pools.keys() != shapes.keys() or len({len(each) for each in ordered}) > 1:
        return False
    return all(_is_pool(each, shapes[name]) for name, each in pools.items()) and _lie_apart(ordered)


def _flat(layers: Sequence[Pools]) -> list[Tensor]:
    return [pool for pools in layers for pool in pools.values()]


def _places(pools: Sequence[Tensor]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(map(Tensor.data_ptr, pools)), tuple(map(Tensor.numel, pools))


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
