"""Modules whose weights are about to be replaced, made without memory and without drawing any."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_DRAWS = {"normal_", "uniform_", "kaiming_uniform_", "trunc_normal_", "xavier_uniform_"}
"""Of tensors, and of `torch.nn.init`."""


class _NothingIsDrawn(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__name__", "") in _DRAWS:
            return (*args, *(kwargs or {}).values())[0]
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def undrawn() -> Iterator[None]:
    """Make modules on the meta device, whose random weights stay undrawn: drawing there imports torch's compiler."""
    with torch.device("meta"), _NothingIsDrawn():
        yield
