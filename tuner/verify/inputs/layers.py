"""Numbers for the kernels of whole layers: packed weights as a model is drawn with, rows at several positions."""

from __future__ import annotations

import torch
from torch import Tensor

from codegen.kernels.arguments import Argument
from codegen.kernels.between.arguments import counterpart
from codegen.kernels.layer.arguments import INT64, WEIGHTS
from codegen.kernels.layer.layout import layout_of
from codegen.spec import Spec

_EVERY = 3
"""Of so many rows one is at the start of its chunk."""

_LEVELS = 127
_DRAWN = {
    "taps_q": (0.0, 0.5),
    "taps_k": (0.0, 0.5),
    "decay_bias": (4.0, 1.0),
}
_AROUND_ONE = (1.0, 0.1)
"""Mean and deviation of the weights of norms."""

_EPS = 1e-6

_OF_STREAM = ("x", "normed", "projected", "gate_and_up")
"""The residual stream, and what linear maps make of it."""


def drawn_for_layer(argument: Argument, spec: Spec, shape: list[int], generator: torch.Generator) -> Tensor:
    """The numbers of an argument of one of `codegen.spec.LAYER_OPERATORS`.

    Linear maps come from N(0, 1 / inputs), the residual stream and what they make of it from N(0, 1), states from
    N(0, 1 / D).
    """
    if argument.name == WEIGHTS:
        return _weights(spec, generator)
    if argument.name == "vectors":
        return _vectors(spec, generator)
    if argument.type == INT64:
        positions = torch.randint(1, max(2, spec.problem.chunk), shape, generator=generator, device=generator.device)
        positions[::_EVERY] = 0
        return positions
    normal = torch.randn(shape, generator=generator, device=generator.device)
    return normal if argument.name in _OF_STREAM else normal * shape[-1] ** -0.5


def _weights(spec: Spec, generator: torch.Generator) -> Tensor:
    parts = []
    for matrix in layout_of(spec).matrices.values():
        normal = torch.randn(matrix.numbers, generator=generator, device=generator.device)
        if matrix.scales is None:
            parts.append(normal * matrix.columns**-0.5)
        else:
            parts.append((normal * _LEVELS / 4).round().clamp(-_LEVELS, _LEVELS))
    return torch.cat(parts)


def _vectors(spec: Spec, generator: torch.Generator) -> Tensor:
    layout, parts = layout_of(counterpart(spec)), []
    columns = {f"{name}_scales": matrix.columns for name, matrix in layout.matrices.items()}
    for name, vector in layout.vectors.items():
        normal = torch.randn(vector.length, generator=generator, device=generator.device)
        if name == "eps":
            parts.append(torch.full_like(normal, _EPS))
        elif name == "step_size":
            parts.append(normal - 2.0 if spec.rule.step_size == "token" else 0.05 + 0.05 * normal.abs())
        elif name in columns:
            parts.append((1.0 + normal.abs()) * 4 / _LEVELS * columns[name] ** -0.5 / 2)
        else:
            mean, deviation = _DRAWN.get(name, _AROUND_ONE)
            parts.append(mean + deviation * normal)
    return torch.cat(parts)
