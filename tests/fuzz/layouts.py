"""How a tensor lies in memory: the ways to hold the same numbers that users come by.

A layout takes a contiguous tensor and gives one of the same shape, most of them with the same values; those that share
memory between elements repeat some of the values, so what a call is compared with must be read from the result.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_BESIDE = 7.0
"""What stands beside the numbers of a view; it must not be read, and where states are views not be written."""


def _contiguous(x: Tensor) -> Tensor:
    return x


def _offset(x: Tensor) -> Tensor:
    """Contiguous, but aligned to nothing more than its own elements."""
    return _buffer(x, x.numel() + 9)[3 : 3 + x.numel()].copy_(x.flatten()).view(x.shape)


def _permuted(x: Tensor) -> Tensor:
    """Axes in another order in memory, as `.transpose(1, 2)` leaves a tensor that was made head by head."""
    if x.ndim < 2:
        return x
    order = [*range(1, x.ndim), 0]
    back = [order.index(axis) for axis in range(x.ndim)]
    return x.permute(order).contiguous().permute(back)


def _heads_first(x: Tensor) -> Tensor:
    if x.ndim < 3:
        return x
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def _sliced(x: Tensor) -> Tensor:
    """A part of the last axis of a wider tensor, as of a projection to q, k and v at once."""
    wide = _buffer(x, *x.shape[:-1], x.shape[-1] + 5)
    return wide[..., 2 : 2 + x.shape[-1]].copy_(x)


def _every_second(x: Tensor) -> Tensor:
    wide = _buffer(x, *x.shape[:-1], 2 * x.shape[-1] + 1)
    return wide[..., 1::2].copy_(x)


def _part_of_tokens(x: Tensor) -> Tensor:
    """A part of the first two axes of a longer tensor."""
    if x.ndim < 2:
        return _offset(x)
    wide = _buffer(x, x.shape[0] + 1, x.shape[1] + 3, *x.shape[2:])
    return wide[1:, 2 : 2 + x.shape[1]].copy_(x)


def _odd_unit_strides(x: Tensor) -> Tensor:
    """Axes of length one with strides that mean nothing; torch calls it contiguous."""
    strides = [
        1_000_003 if size == 1 else stride for size, stride in zip(x.shape, x.contiguous().stride(), strict=True)
    ]
    return x.contiguous().as_strided(x.shape, strides)


def _expanded(axis: int) -> Callable[[Tensor], Tensor]:
    def layout(x: Tensor) -> Tensor:
        if axis >= x.ndim:
            return x
        return x.narrow(axis, 0, 1).clone().expand(x.shape)

    return layout


def _windows(x: Tensor) -> Tensor:
    """Rows that overlap, as `unfold` makes them."""
    if x.ndim < 2:
        return x
    rows = x.shape[:-1].numel()
    flat = _buffer(x, rows + x.shape[-1])
    flat.copy_(x.flatten().repeat(2)[: flat.numel()] if x.numel() * 2 >= flat.numel() else flat)
    strides = [stride // x.shape[-1] for stride in x.contiguous().stride()[:-1]]
    return flat.as_strided(x.shape, [*strides, 1])


def _buffer(like: Tensor, *shape: int) -> Tensor:
    return torch.full(shape, _BESIDE, dtype=like.dtype)


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": _contiguous,
    "offset": _offset,
    "permuted": _permuted,
    "heads first": _heads_first,
    "sliced": _sliced,
    "every second": _every_second,
    "part of tokens": _part_of_tokens,
    "odd unit strides": _odd_unit_strides,
}
"""Layouts with one place for each element: a state that is moved in place may have them too."""

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    **VIEWS,
    "expanded batch": _expanded(0),
    "expanded tokens": _expanded(1),
    "expanded heads": _expanded(2),
    "expanded width": _expanded(3),
    "windows": _windows,
}
"""All of them."""
