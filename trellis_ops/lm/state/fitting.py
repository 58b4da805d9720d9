"""Whether the tensors of a state are those that are wanted: names, shapes, types and devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from codegen.errors import DeviceMismatchError, DtypeError, ShapeError, SizeError


@dataclass(frozen=True)
class Wanted:
    """What a tensor must be.

    Attributes:
        shape: all of it.
        dtype: None for any floating-point type.
        device: where it must be.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    device: torch.device


def check_layers(found: Sequence[Mapping[str, Tensor]], wanted: Sequence[Mapping[str, Wanted]]) -> None:
    """Raise unless the tensors of every layer of a state are those that are wanted, by name.

    Raises:
        SizeError: another number of layers.
        ShapeError, DtypeError, DeviceMismatchError, TypeError: with the name of the first tensor that differs.
    """
    if len(found) != len(wanted):
        raise SizeError(name="number of layers in state", value=len(found), expected=str(len(wanted)))
    for index, (layer, like) in enumerate(zip(found, wanted, strict=True)):
        for name in {**like, **layer}:
            _check(f"state.layers[{index}].{name}", layer.get(name), like.get(name))


def _check(name: str, found: object, wanted: Wanted | None) -> None:
    if not isinstance(found, Tensor | None):
        raise TypeError(f"{name} is {found!r}, but must be a torch.Tensor")
    if found is None or wanted is None or found.shape != wanted.shape:
        given = None if found is None else list(found.shape)
        raise ShapeError(name=name, shape=given, expected=str(wanted and list(wanted.shape)))
    if wanted.dtype is not None and found.dtype != wanted.dtype:
        raise DtypeError(name=name, dtype=found.dtype, expected=str(wanted.dtype))
    if not found.is_floating_point():
        raise DtypeError(name=name, dtype=found.dtype, expected="a floating-point type")
    if found.device != wanted.device:
        raise DeviceMismatchError(name=name, device=found.device, expected=wanted.device)
