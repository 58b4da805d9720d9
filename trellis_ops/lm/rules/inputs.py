"""What the layer around a rule makes, where the record leaves it open."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor
from torch.nn import functional as F

from codegen.recurrence.program import Axes
from trellis_ops.lm.rules.source import Source, as_is
from trellis_ops.preparations import elu_plus_one

Tensors = dict[str, Tensor]
"""Tensors by name: q, k, v, those of a rule, and those that a preparation reads."""

FEATURES: dict[str, Callable[[Tensor], Tensor]] = {
    "unit": as_is,
    "unit_centred": lambda x: x - x.mean(-1, keepdim=True),
    "silu": F.silu,
    "positive": elu_plus_one,
}
"""Maps of q and k after the convolutions."""

UNIT_FEATURES = ("unit", "unit_centred")
"""Those in `FEATURES` that are then divided by the length."""


def nothing(made: Tensors) -> Tensors:
    """The preparation that changes nothing."""
    return {}


def read_as_is(y: Tensor, made: Tensors) -> Tensor:
    """The readout that changes nothing."""
    return y


@dataclass(frozen=True)
class RuleInputs:
    """The layer around one rule.

    Attributes:
        chunk: C where none is given.
        sources: how tensors are made that have a way of their own, or that only `make` reads.
        make: from all tensors, `[B, T, H, ...]`, to those that take the place of others or join them.
        makes: the tensors of the rule that come from `make` alone, or None of the call, which is one.
        features: of q and k, in `FEATURES`.
        first_state: whether S starts from a parameter in any case.
        substeps: n, tokens that the rule reads for each of the text.
        prepared: the axes of what `make` carries from token to token, by name; sums' logarithms, which start at -inf.
        finish: from y `[B, T n, H, D_v]` and all tensors to what the layer's norm reads, `[B, T, H, D_v]`.
    """

    chunk: int = 1
    sources: Mapping[str, Source] = field(default_factory=dict)
    make: Callable[[Tensors], Tensors] = nothing
    makes: tuple[str, ...] = ()
    features: str = "unit"
    first_state: bool = False
    substeps: int = 1
    prepared: Mapping[str, Axes] = field(default_factory=dict)
    finish: Callable[[Tensor, Tensors], Tensor] = read_as_is
