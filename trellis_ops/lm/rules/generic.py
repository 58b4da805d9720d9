"""The sources of the tensors of any rule, for those that its layer does not make in a way of its own."""

from __future__ import annotations

import functools

from torch.nn import functional as F

from codegen.recurrence.of_rule import write_inputs
from codegen.recurrence.tensors import HEAD, Given, tensors
from codegen.rule import SOLVE, Rule
from trellis_ops.lm.rules.inputs import RuleInputs
from trellis_ops.lm.rules.source import RANK, Source, as_is, logit, unit

_MOMENTUM = 0.5
"""Where the factor of the momentum starts."""

_ONE = 0.5413248546129181
"""What softplus makes 1 of."""


def sources(rule: Rule, inputs: RuleInputs, init_decay: float, init_step_size: float) -> dict[str, Source]:
    """How every tensor beside q, k and v is made, and what the layer's preparation reads besides.

    Args:
        rule: any.
        inputs: of its layer.
        init_decay, init_step_size: where forget gates and step sizes start.
    """
    found = dict(inputs.sources)
    for each in tensors(rule):
        named = each.name in found or each.name in inputs.makes or each.name in ("q", "k", "v")
        if not named and not (each.name == "target" and rule.link == SOLVE) and not _is_one(each, rule):
            found[each.name] = _source(each, rule, init_decay, init_step_size)
    return found


def reads_memory(rule: Rule) -> bool:
    """Whether what is written depends on the memory, so that large steps may diverge."""
    return "z" in write_inputs(rule.phi) or rule.view_gradient


def is_linear_in_v(rule: Rule) -> bool:
    """Whether v of any length is as stable as v of unit length."""
    regressed = rule.phi == "identity" and rule.passes == 1 and not rule.transposed
    return (rule.phi == "hebbian" or regressed) and rule.view == "identity"


def _is_one(each: Given, rule: Rule) -> bool:
    return each.name == "step_size" and each.per == HEAD and not reads_memory(rule)


def _source(each: Given, rule: Rule, init_decay: float, init_step_size: float) -> Source:
    gate = functools.partial(Source, axes=each.axes, per=each.per)
    if each.name == "log_decay":
        return Source(F.logsigmoid, logit(init_decay), each.axes, rank=RANK if each.axes else None)
    if each.name == "step_size":
        return gate(F.sigmoid, logit(_first_step(rule, init_step_size)))
    if each.name == "momentum":
        return gate(F.sigmoid, logit(_MOMENTUM))
    if each.name in ("reader_step", "window_weight"):
        return gate(F.sigmoid)
    if each.name == "probe":
        return Source(unit, axes=each.axes, is_input=True)
    if each.name == "gain":
        return gate(as_is, 1.0)
    if each.name == "regulariser":
        return gate(F.softplus, _ONE)
    return Source(as_is, axes=each.axes, per=each.per, is_input=each.is_input)


def _first_step(rule: Rule, init_step_size: float) -> float:
    """Where the step size starts: small where what is written depends on the memory and is repeated."""
    if not reads_memory(rule):
        return 0.5
    repeated = rule.window / (1.0 - _MOMENTUM if rule.momentum else 1.0)
    return min(init_step_size, 0.5) / repeated
