"""A rule as a call has it: its text, and what of its record the public functions need, as plain constants.

torch.compile takes what `called` returns as it is, and does not look into how it is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from codegen.errors import RuleTensorError
from codegen.recurrence.tensors import HEAD, states, tensors
from codegen.rule import SOLVE, STEP_SIZES, Rule
from codegen.rule_text import rule_text
from codegen.rules import NAMED, rule_named


class Taken(NamedTuple):
    """A tensor that a call takes: its name, and whether each head has one, it is of the type of q, None is ones."""

    name: str
    per_head: bool
    is_input: bool
    optional: bool


class Called(NamedTuple):
    """A rule of a call.

    Attributes:
        text: of `codegen.rules.rule_text`, with the layout of the step size that was given.
        taken: the tensors in the order of the record.
        names: theirs.
        is_input: of each in that order, whether it has the type of q.
        states: how many it carries.
        target_is_k: whether the target is k itself.
        maps: phi, link, out and phi_eps where `trellis_attention` computes it; None elsewhere.
    """

    text: str
    taken: tuple[Taken, ...]
    names: tuple[str, ...]
    is_input: tuple[bool, ...]
    states: int
    target_is_k: bool
    maps: tuple[str, str, str, float] | None


_CALLED: dict[tuple[str | Rule, int], Called] = {}
_MOST_CALLED = 4096


def called(rule: str | Rule, step_rank: int) -> Called:
    """The rule of a name, or a rule, called with a step size of so many axes, 0 for none.

    Raises:
        UnknownRuleError: it is neither a rule nor the name of one.
        RuleError: it is a text of no rule.
    """
    # What a text that names a user's map means may change; a Rule has the definition.
    known = rule if isinstance(rule, str) and rule in NAMED else rule_named(rule)
    key = (known, min(step_rank, 2))
    found = _CALLED.get(key)
    if found is None:
        if len(_CALLED) >= _MOST_CALLED:
            _CALLED.clear()
        found = _CALLED[key] = _made(rule_named(known), step_rank)
    return found


called._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _made(rule: Rule, step_rank: int) -> Called:
    if rule.step_size in STEP_SIZES:
        rule = replace(rule, step_size="token" if step_rank > 1 else "head")
    taken = tuple(Taken(each.name, each.per == HEAD, each.is_input, each.optional) for each in tensors(rule))
    maps = (rule.phi, rule.link, rule.out, rule.phi_eps) if rule.is_trellis else None
    names, is_input = tuple(each.name for each in taken), tuple(each.is_input for each in taken)
    return Called(rule_text(rule), taken, names, is_input, len(states(rule)), rule.link == SOLVE, maps)


def in_order(rule: Called, named: Mapping[str, Tensor | None]) -> list[Tensor]:
    """The tensors that a rule takes, in the order of its record, with ones for what is optional and None.

    Args:
        rule: of the call.
        named: q, k, v and every other tensor that some rule takes; None for those that are not given.

    Raises:
        RuleTensorError: one is missing, or given and not taken.
        TypeError: one is no tensor.
    """
    given = {name: x for name, x in named.items() if x is not None}
    for name, x in given.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} is {x!r}, but must be a torch.Tensor")
        if name not in rule.names:
            raise RuleTensorError(name=name, problem="is given, and not taken", taken=_listed(rule))
        if name == "target" and rule.target_is_k:
            raise RuleTensorError(name=name, problem='is given, and is k where link="solve"', taken=_listed(rule))
    # Most calls give all that is taken, and a call for each token would pay for more than a look.
    return [given[each.name] if each.name in given else _instead(each, given, rule) for each in rule.taken]


def _instead(each: Taken, given: Mapping[str, Tensor], rule: Called) -> Tensor:
    if each.name == "target" and rule.target_is_k and "k" in given:
        return given["k"]
    q = given.get("q")
    if not each.optional or q is None:
        raise RuleTensorError(name=each.name, problem="is missing", taken=_listed(rule))
    shape = q.shape[-2:-1] if each.per_head else q.shape[:-1]
    return q.new_ones(shape, dtype=torch.float64 if q.dtype == torch.float64 else torch.float32)


def _listed(rule: Called) -> str:
    taken = (each for each in rule.taken if each.name != "target" or not rule.target_is_k)
    return ", ".join(f"{each.name} or None" if each.optional else each.name for each in taken)
