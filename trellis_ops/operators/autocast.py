"""The operators under torch.autocast: its type for q, k, v and target, float32 for gates, states and all arithmetic.

Autocast would otherwise lower the products inside an eager operator, and with them its states.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor


def lower(tokens: tuple[Tensor, ...], gates: tuple[Tensor, ...]) -> Sequence[Tensor]:
    """All of them in order: under autocast `tokens` in its type and `gates` in float32, else as they are.

    What is float64, or no tensor of floating point, is left for the checks of arguments.
    """
    first = tokens[0]
    if not _lowers(first):
        return tokens + gates
    low = torch.get_autocast_dtype(first.device.type)
    return [*(_cast(x, low) for x in tokens), *(_cast(x, torch.float32) for x in gates)]


def lower_of_rule(given: Sequence[Tensor], is_input: Sequence[bool]) -> list[Tensor]:
    """As `lower`, of tensors in the order of a rule's record, where `is_input` says which have the type of q."""
    if not _lowers(given[0]):
        return list(given)
    inputs = tuple(x for x, its in zip(given, is_input, strict=True) if its)
    gates = tuple(x for x, its in zip(given, is_input, strict=True) if not its)
    found = list(lower(inputs, gates))
    first, second = iter(found[: len(inputs)]), iter(found[len(inputs) :])
    return [next(first) if its else next(second) for its in is_input]


def _lowers(first: Tensor) -> bool:
    # To ask for one type of device takes half a microsecond more; "any" leaves out some types, but not these two.
    if not isinstance(first, Tensor) or ((first.is_cpu or first.is_cuda) and not torch._C._is_any_autocast_enabled()):
        return False
    return _is_on(first.device.type)


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    castable = isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64
    return x.to(dtype) if castable else x


def off(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Where products are computed in the types of their operands."""
    if _is_on(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def _is_on(device_type: str) -> bool:
    # Meta tensors have no autocast.
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
