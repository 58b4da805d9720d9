"""The tensors of a model's state as the kernels of blocks take them, looked at once and not before every token."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import attrgetter, is_
from typing import Any, cast

import torch
from torch import Tensor

from codegen.backends import Kernel, held
from trellis_ops.lm.decode.between import lie_apart
from trellis_ops.lm.state import LayerState, TrellisState
from trellis_ops.lm.state.place import positions_on

_CPU = torch.device("cpu")
_ALIGNMENT = 64
"""Bytes, of what torch allocates on a CPU."""


@dataclass(frozen=True)
class HeldState:
    """Tensors of a state that a kernel takes.

    Attributes:
        kernel: of a block.
        tensors: of all layers, in the order of the kernel.
        places: where their memory begins, and how they lie in it.
        layers: of each layer its tensors, as the kernel takes them.
        positions: those of rows that are all at one, likewise, by the positions met so far.
    """

    kernel: Kernel
    tensors: tuple[Tensor, ...]
    places: tuple[tuple[Any, ...], ...]
    layers: tuple[tuple[Any, ...], ...]
    positions: dict[int, tuple[Any, ...]] = field(default_factory=dict)

    def are(self, kernel: Kernel, tensors: Sequence[Tensor]) -> bool:
        """Whether these are the same tensors in the same memory, held for the same kernel."""
        same = self.kernel is kernel and all(map(is_, tensors, self.tensors))
        return same and _places(tensors) == self.places

    def where(self, state: TrellisState) -> tuple[Any, ...]:
        """The positions of the rows as the kernel takes them; none where a state has no copies of the chunk's start."""
        place = state.place
        known = self.positions.get(place) if isinstance(place, int) else None
        if known is None:
            known = tuple(held(self.kernel, each) for each in where(state))
            if isinstance(place, int):
                self.positions[place] = known
        return known


def where(state: TrellisState) -> tuple[Tensor, ...]:
    """The positions of the rows, `[B]`, as kernels take them; none where a state has no copies of the chunk's start."""
    first = cast(LayerState, state.layers[0])
    return () if first.starts() is None else (positions_on(state.place, state.batch, _CPU),)


def held_state(kernel: Kernel, state: TrellisState, names: tuple[str, ...]) -> HeldState | None:
    """The tensors of `state` as `kernel`, of a block, takes them; None where it would refuse one.

    They are kept with the state until it has others.

    Args:
        names: of the tensors of a layer's state in the order of the kernel.
    """
    layers = tuple(map(_reader(names), state.layers))
    tensors = tuple(chain.from_iterable(layers))
    known = state.held
    if isinstance(known, HeldState) and known.are(kernel, tensors):
        return known
    state.held = None
    if not all(map(_is_taken, tensors)) or not all(map(lie_apart, layers)):
        return None
    hold = functools.partial(held, kernel)
    arguments = tuple(tuple(map(hold, own)) for own in layers)
    state.held = made = HeldState(kernel, tensors, _places(tensors), arguments)
    return made


@functools.cache
def _reader(names: tuple[str, ...]) -> Callable[[object], tuple[Tensor, ...]]:
    return attrgetter(*names)


def _places(tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], ...]:
    return tuple(map(Tensor.data_ptr, tensors)), tuple(map(Tensor.stride, tensors))


def _is_taken(tensor: object) -> bool:
    """Whether every kernel takes it, so that none refuses it when another has moved its layer."""
    if type(tensor) is not Tensor:
        return False
    lies_well = tensor.is_contiguous() and tensor.data_ptr() % _ALIGNMENT == 0
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu" and lies_well
