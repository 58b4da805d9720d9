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
            pairs = zip(arguments, in_dims, strict=True)
            # The axes of a list are a list; the operators have lists of numbers only, which are not mapped.
            return operator(*(x.select(axis, index) if isinstance(axis, int) else x for x, axis in pairs))

        results = [element(index) for index in range(info.batch_size)]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = [torch.stack(each) for each in zip(*results, strict=True)]
        return type(results[0])(stacked), type(results[0])([0] * len(stacked))
