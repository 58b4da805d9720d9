"""References that are written for float32, in float64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch


@contextmanager
def in_float64() -> Iterator[None]:
    """Inside, what Python code asks of torch as float32 is float64: torch.float32, torch.float and Tensor.float."""
    before = torch.get_default_dtype()
    double = mock.patch.multiple(torch, float32=torch.float64, float=torch.float64)
    try:
        with double, mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
            torch.set_default_dtype(torch.float64)
            yield
    finally:
        torch.set_default_dtype(before)
