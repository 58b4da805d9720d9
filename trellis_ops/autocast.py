"""The operators under torch.autocast: its type for q, k, v and alpha, float32 for gates, states and all arithmetic.

Autocast would otherwise lower the products inside an eager operator, and with them its states.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
Result = TypeVar("Result")

_GATES = ("log_beta", "gamma")


def lowers(*names: str) -> Callable[[Callable[P, Result]], Callable[P, Result]]:
    """Decorates an operator whose first argument is a tensor: under autocast, its inputs called `names` are cast.

    They get autocast's type, the gates float32; states are left as they are, and float64 inputs too.
    """

    def decorate(operator: Callable[P, Result]) -> Callable[P, Result]:
        positions = tuple(inspect.signature(operator).parameters)

        def cast(name: str, value: object, dtype: torch.dtype) -> object:
            if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == torch.float64:
                return value
            return value.to(dtype) if name in names else value.float() if name in _GATES else value

        @functools.wraps(operator)
        def run(*args: P.args, **kwargs: P.kwargs) -> Result:
            first = args[0] if args else kwargs.get(positions[0])
            if not isinstance(first, Tensor) or not torch.is_autocast_enabled(first.device.type):
                return operator(*args, **kwargs)
            where = first.device.type
            dtype = torch.get_autocast_dtype(where)
            cast_args = [cast(name, value, dtype) for name, value in zip(positions, args, strict=False)]
            cast_kwargs = {name: cast(name, value, dtype) for name, value in kwargs.items()}
            with torch.autocast(where, enabled=False):
                return operator(*cast_args, **cast_kwargs)  # type: ignore[arg-type]

        return run

    return decorate


def off(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Where products are computed in the types of their operands."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()
