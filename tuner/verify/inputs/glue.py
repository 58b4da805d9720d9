"""Numbers for the kernels between the products of a block: projections of order one, taps and norms as a model has."""

from __future__ import annotations

import torch
from torch import Tensor

from codegen.kernels.arguments import Argument

_EPS = 1e-6
_OF_TAPS = 0.5
_AROUND_ONE = 0.1
"""Deviation of the weight of a norm."""


def drawn_for_glue(argument: Argument, shape: list[int], generator: torch.Generator) -> Tensor:
    """The numbers of an argument of one of `codegen.spec.GLUE_OPERATORS`."""
    normal = torch.randn(shape, generator=generator, device=generator.device)
    if argument.name == "eps":
        return torch.full_like(normal, _EPS)
    if argument.name.startswith("taps_"):
        return _OF_TAPS * normal
    return 1.0 + _AROUND_ONE * normal if argument.name == "weight" else normal
