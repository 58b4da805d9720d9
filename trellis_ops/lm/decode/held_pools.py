"""The pools of a layer's states as the kernel of its block takes them, looked at once."""

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
    """Pools that a kernel takes.

    Attributes:
        names: of the pools that were given, in their order.
        given: the pools that were given.
        places: where their memory began, and how many numbers it had.
        tensors: the same pools in the order of the kernel.
        capacity: slots of each.
        arguments: what the kernel takes behind the rows and their slots: the pools, and `further` tensors.
    """

    names: tuple[str, ...]
    given: tuple[Tensor, ...]
    places: tuple[tuple[int, ...], tuple[int, ...]]
    tensors: tuple[Tensor, ...]
    capacity: int
    arguments: tuple[Any, ...]

    def are(self, pools: Pools) -> bool:
        """Whether these are the same pools, in the same memory."""
        same = tuple(pools) == self.names and all(map(is_, pools.values(), self.given))
        return same and _places(self.given) == self.places


def hold(
    kernel: Kernel, pools: Pools, shapes: Mapping[str, tuple[int, ...]], order: Sequence[str], further: Sequence[Tensor]
) -> HeldPools | None:
    """The pools as `kernel` takes them; None where it might refuse them after those of another layer were moved.

    Args:
        kernel: of a block.
        pools: by name.
        shapes: of the states of one sequence by name, `[1, ...]`.
        order: the names in the order of the kernel.
        further: what it takes behind the pools.
    """
    tensors = tuple(pools[name] for name in order if name in pools)
    if pools.keys() != shapes.keys() or len({len(each) for each in tensors}) > 1:
        return None
    if not all(_is_pool(each, shapes[name]) for name, each in pools.items()) or not _lie_apart(tensors):
        return None
    arguments = tuple(held(kernel, each) for each in (*tensors, *further))
    given = tuple(pools.values())
    return HeldPools(tuple(pools), given, _places(given), tensors, len(tensors[0]), arguments)


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
