"""Inputs that are hard to be right on: what is checked besides the ragged sequences of `tuner.verify.check`.

Each case is made of the ordinary inputs, so that it serves every operator. Scales are those at which the oracle itself
is well conditioned in float32: nothing overflows, and no difference of nearly equal numbers decides a result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from codegen.device import Device
from codegen.kernels.between.arguments import counterpart
from codegen.kernels.glue.arguments import is_of_glue
from codegen.kernels.layer.layout import layout_of
from codegen.kernels.signatures import TENSORS
from codegen.spec import BLOCK_STEP, FAMILY_OPERATORS, MIXER_STEP, Spec
from tuner.verify.inputs import adversarial_rules as of_rules
from tuner.verify.inputs.trellis import Inputs, make_inputs

HUGE, TINY = 100.0, 0.01
LARGE = 10.0
"""Of products of three numbers, which float16 has to hold."""

_SMALL_STEP = 1 / 16

_STATES = tuple(name for name, (axes, _) in TENSORS.items() if "slots" in axes.split()[:-1] and name[0] != "d")
_TARGETS = ("target", "codes")
_WRITTEN = ("k", "v", "w")

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """One kind of hard input.

    Attributes:
        name: as verdicts name it.
        change: makes it of ordinary inputs of the spec, in place.
        single: whether its sequences have one token each.
    """

    name: str
    change: Callable[[Spec, Tensors], None]
    single: bool = False


def _nothing(spec: Spec, tensors: Tensors) -> None:
    pass


def _zero_state(spec: Spec, tensors: Tensors) -> None:
    for name in _present(tensors, _STATES):
        tensors[name].zero_()


def _hard_forgetting(spec: Spec, tensors: Tensors) -> None:
    """Every third token forgets all that was, to zero in float32; one in three nothing at all."""
    tensors["log_decay"][::3] = -120.0
    tensors["log_decay"][1::3] = 0.0


def _one_slot(spec: Spec, tensors: Tensors) -> None:
    """All that is held, written or read stands in the last slot.

    A norm over the slots makes a sign of what stands in one of them, which rounding would decide near zero. So states
    and what is written are positive, targets are as large as that norm, steps are small, and a token is read by a q of
    one sign. Such a norm hides how large what is read is; the other cases see that.
    """
    for name in _present(tensors, _STATES):
        tensors[name].abs_()[..., :-1, :] = 0.0
    for name in _present(tensors, _TARGETS):
        tensors[name].abs_()[..., :-1] = 0.0
    for name in _present(tensors, _WRITTEN):
        tensors[name].abs_()
    for name in _present(tensors, ("q", "read")):
        sign = tensors[name][..., :1].sign()
        tensors[name].abs_().mul_(sign)
    if "target" in tensors:
        tensors["target"][..., -1] += math.sqrt(tensors["target"].shape[-1])
        tensors["step_size"].mul_(_SMALL_STEP)


def _scaled(factor: float) -> Callable[[Spec, Tensors], None]:
    def change(spec: Spec, tensors: Tensors) -> None:
        for name in _present(tensors, (*_STATES, *_TARGETS)):
            tensors[name].mul_(factor)

    return change


CASES = (
    Case("one token", _nothing, single=True),
    Case("zero state", _zero_state),
    Case("hard forgetting", _hard_forgetting),
    Case("one slot", _one_slot),
    Case("huge values", _scaled(HUGE)),
    Case("tiny values", _scaled(TINY)),
)
"""Of TRELLIS' operators."""


def _of_rule(change: of_rules.Change) -> Callable[[Spec, Tensors], None]:
    return lambda spec, tensors: change(spec.rule, tensors)


RULE_CASES = (
    Case("one token", _nothing, single=True),
    Case("zero state", _of_rule(of_rules.zero_state)),
    Case("hard forgetting", _of_rule(of_rules.hard_forgetting)),
    Case("closed gates", _of_rule(of_rules.closed_gates)),
    Case("steps of nothing", _of_rule(of_rules.steps_of_nothing)),
    Case("huge values", _of_rule(of_rules.scaled(HUGE))),
    Case("tiny values", _of_rule(of_rules.scaled(TINY))),
)
"""Of the operators of any rule."""


def _gates_of_layer(spec: Spec, tensors: Tensors) -> None:
    """Of three heads one forgets all that was, and one nothing at all."""
    bias = layout_of(counterpart(spec)).vectors["decay_bias"]
    gates = tensors["vectors"][bias.first : bias.first + bias.length]
    place = torch.arange(len(gates)) % 3
    gates[place == 0] = -120.0
    gates[place == 1] = 120.0


BLOCK_CASES = (
    Case("zero state", _zero_state),
    Case("hard forgetting", _gates_of_layer),
    Case("huge values", _scaled(HUGE)),
    Case("tiny values", _scaled(TINY)),
)
"""Of a block's decode step, or its token mixer's; what has no memories has no state that could be any of these."""

_WITH_MEMORIES = (BLOCK_STEP, MIXER_STEP)


def _all_scaled(factor: float) -> Callable[[Spec, Tensors], None]:
    def change(spec: Spec, tensors: Tensors) -> None:
        for name, tensor in tensors.items():
            if name != "eps":
                tensor.mul_(factor)

    return change


def _zero_rows(spec: Spec, tensors: Tensors) -> None:
    """Every third token, and with it what is divided by its length, is nothing but zeros."""
    for name in _present(tensors, ("shared", "v", "y", "gate", "up", "x", "more")):
        tensors[name][::3] = 0.0
    for name in _present(tensors, ("tails",)):
        tensors[name].zero_()


GLUE_CASES = (
    Case("one token", _nothing, single=True),
    Case("zero rows", _zero_rows),
    Case("large values", _all_scaled(LARGE)),
    Case("tiny values", _all_scaled(TINY)),
)
"""Of what stands between the products of a block."""


def cases_of(spec: Spec) -> tuple[Case, ...]:
    """The cases that a spec is checked on."""
    if spec.problem.layer is not None:
        return BLOCK_CASES if spec.problem.operator in _WITH_MEMORIES else ()
    if is_of_glue(spec):
        return GLUE_CASES
    return RULE_CASES if spec.problem.operator in FAMILY_OPERATORS else CASES


def adversarial_inputs(case: Case, spec: Spec, lengths: tuple[int, ...], device: Device, seed: int) -> Inputs:
    """The inputs of `case`, in sequences of `lengths` unless the case says otherwise."""
    inputs = make_inputs(spec, (1,) * len(lengths) if case.single else lengths, device, seed)
    case.change(spec, inputs.tensors)
    return inputs


def _present(tensors: Tensors, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if name in tensors]
