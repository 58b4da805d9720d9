"""The operators under torch.vmap: one call for each element of the mapped axis, whatever else is mapped or not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef


def map_by_calls(operator: CustomOpDef) -> None:
    """Give `operator`, which returns a tensor or several of them, its rule for torch.vmap."""

    @operator.register_vmap
    def _(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        def element(index: int) -> Any:
            return operator(*(_element(x, axis, index) for x, axis in zip(arguments, in_dims, strict=True)))

        results = [element(index) for index in range(info.batch_size)]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = [torch.stack(each) for each in zip(*results, strict=True)]
        return type(results[0])(stacked), type(results[0])([0] * len(stacked))


def _element(x: Any, axis: Any, index: int) -> Any:
    """One element of what is mapped along an axis; the axes of a list are a list."""
    if isinstance(axis, int):
        return x.select(axis, index)
    if isinstance(axis, list | tuple) and any(each is not None for each in axis):
        return [_element(each, its, index) for each, its in zip(x, axis, strict=True)]
    return x
