"""The measure that every comparison uses."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Largest relative error of a result by the type of the inputs; gradients may have ten times that."""


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """||actual - expected|| / ||expected||, or ||actual|| where nothing is expected; NaN and inf count as infinite."""
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    actual, expected = actual.detach().double(), expected.detach().double()
    if not actual.isfinite().all():
        return float("inf")
    size = expected.norm()
    return float((actual - expected).norm() / (size if size > 0 else 1.0))


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, name: str = "result") -> None:
    error = relative_error(actual, expected)
    assert error <= tolerance, f"{name}: relative error {error:.2e} is above {tolerance:.0e}"
