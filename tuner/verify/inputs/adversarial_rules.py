"""Inputs of any rule that are hard to be right on: gates that forget all or nothing, steps of nothing, far values.

A state that is zero in all slots but one is left out: a norm of a rule makes a sign of what stands there.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from codegen.recurrence.tensors import chunk_states, memories, states
from codegen.rule import Rule

Tensors = dict[str, Tensor]
Change = Callable[[Rule, Tensors], None]
"""Makes a hard input of ordinary ones, in place."""


def zero_state(rule: Rule, tensors: Tensors) -> None:
    """Nothing is held."""
    for name in _held(rule, tensors):
        tensors[name].zero_()


def hard_forgetting(rule: Rule, tensors: Tensors) -> None:
    """Of three tokens one forgets all that was, to zero in float32, and one nothing at all."""
    if "log_decay" in tensors:
        tensors["log_decay"][::3] = -120.0
        tensors["log_decay"][1::3] = 0.0


def closed_gates(rule: Rule, tensors: Tensors) -> None:
    """Every fourth token forgets all by a gate of -inf; where rows or columns have gates, every other one of them."""
    if "log_decay" in tensors:
        gates = tensors["log_decay"][::4]
        (gates[..., ::2] if gates.ndim > 2 else gates).fill_(-math.inf)


def steps_of_nothing(rule: Rule, tensors: Tensors) -> None:
    """Every other token, or head, writes nothing, and every third has no momentum."""
    tensors["step_size"][::2] = 0.0
    if "momentum" in tensors:
        tensors["momentum"][::3] = 0.0


def scaled(factor: float) -> Change:
    """What is held and what is written, so many times as large."""

    def change(rule: Rule, tensors: Tensors) -> None:
        targets = [each.target for each in memories(rule)]
        weights = ("n", "n0", *(name for name in tensors if name.startswith("window_w")))
        for name in dict.fromkeys((*_held(rule, tensors), *targets)):
            if name not in weights and not _divides(rule, name):
                tensors[name].mul_(factor)

    return change


def _held(rule: Rule, tensors: Tensors) -> list[str]:
    return [name for name in (*states(rule), *chunk_states(rule)) if name in tensors]


def _divides(rule: Rule, name: str) -> bool:
    """Whether the normaliser adds up what is also the target."""
    return rule.normaliser != "none" and name in ("k", "q")
