"""Seeded tensors and states of any rule: what its record takes and carries, as a trained model would have it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from codegen.kernels.arguments import INPUT, Argument
from codegen.rule import SOLVE, Rule

_BETWEEN = {
    "step_size": (0.05, 0.15),
    "reader_step": (0.5, 1.0),
    "momentum": (0.3, 0.9),
    "window_weight": (0.5, 1.0),
    "gain": (0.8, 1.2),
    "regulariser": (0.5, 1.5),
}
"""What is drawn evenly between two numbers."""

_DIVIDED = ("q", "k", "probe")
"""What a normaliser's products are made of, which divide and are positive, as elu(x) + 1 is."""

_ERASED = 0.25
"""Length of erase_b: products of many I + a b^T with longer ones grow beyond all that a model has."""


def numbers_of(name: str, rule: Rule) -> str:
    """The tensor whose numbers another one has: where link is "solve" the target is k."""
    return "k" if rule.link == SOLVE and name == "target" else name


def drawn_for(argument: Argument, rule: Rule, shape: list[int], generator: torch.Generator) -> Tensor:
    """The numbers of an argument of one of `codegen.spec.FAMILY_OPERATORS`.

    Keys, values and other vectors have length one, those that a normaliser divides by are positive; gates forget slowly
    except for one in sixteen that forgets almost everything, of each row or column apart where they have one; states
    are N(0, 1 / D), that of "solve" symmetric and positive, that of a normaliser at least 1.
    """
    name = numbers_of(argument.name, rule)
    if name in _BETWEEN or name == "log_decay":
        even = torch.rand(shape, generator=generator, device=generator.device)
        return _gate(even) if name == "log_decay" else _between(*_BETWEEN[name], even)
    drawn = torch.randn(shape, generator=generator, device=generator.device)
    if argument.cotangent_of is not None:
        return drawn / math.sqrt(shape[-1]) if argument.axes[0] == "sequences" else drawn
    return _vectors(name, argument, rule, drawn) if argument.type == INPUT else _state(name, rule, drawn)


def _gate(even: Tensor) -> Tensor:
    return torch.where(even < 1 / 16, -5.0, -0.02 * even)


def _between(low: float, high: float, even: Tensor) -> Tensor:
    return low + (high - low) * even


def _vectors(name: str, argument: Argument, rule: Rule, drawn: Tensor) -> Tensor:
    if argument.axes[-1] == "slots" and numbers_of(argument.name, rule) == argument.name:
        return drawn
    unit = drawn / drawn.square().sum(dim=-1, keepdim=True).sqrt()
    if rule.normaliser != "none" and name in _DIVIDED:
        return unit.abs()
    return _ERASED * unit if name == "erase_b" else unit


def _state(name: str, rule: Rule, drawn: Tensor) -> Tensor:
    scaled = drawn / math.sqrt(drawn.shape[-1])
    if name in ("n", "n0"):
        return 1 + drawn.abs()
    if rule.link == SOLVE and name in ("S_k", "S0_k"):
        return scaled @ scaled.mT
    return scaled
