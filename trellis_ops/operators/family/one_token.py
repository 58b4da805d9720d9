"""One token of any rule as torch.library sees it; states move in place."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from codegen.recurrence.of_rule import used_chunk_states
from codegen.recurrence.tensors import states, tensors
from trellis_ops.calls import family_arguments
from trellis_ops.calls.arguments import Request
from trellis_ops.dispatch import launch_rule
from trellis_ops.eager import recurrence as eager
from trellis_ops.operators import autocast, overlap, transforms
from trellis_ops.operators.family import quick_step
from trellis_ops.operators.family.given import check_values, parted, rule_of
from trellis_ops.operators.plan import QUICK_PLANS, plan

_STEP = "(Tensor[] given, Tensor(a!)[] state, Tensor(b!)[] starts, str rule, str? implementation) -> Tensor"


def step_request(*arguments: Any) -> Request:
    """The checked call of one token: given, states, chunk states, then their numbers and the rule."""
    *flat, counts, rule = arguments
    given, state, starts = parted(flat, counts)
    return family_arguments.step_request(rule_of(rule), given, state, starts)


def run_step(
    given: list[Tensor], state: list[Tensor], starts: list[Tensor], rule: str, implementation: str | None
) -> Tensor:
    """y `[B, H, D_v]`; states, and sums of writes among `starts`, move in place."""
    key = quick_step.key_of(given, state, starts, rule, implementation)
    quick = QUICK_PLANS.get(key)
    if quick is not None:
        try:
            y = quick_step.step(quick, given, state, starts)
        except RuntimeError:
            # Bad input has a better reason. A kernel that has begun must not run again: it has moved states.
            family_arguments.step_request(rule_of(rule), given, state, starts)
            raise
        if y is not None:
            return y
    flat = (*given, *state, *starts)
    found = plan(step_request, flat, ((len(given), len(state), len(starts)), rule), implementation)
    made = rule_of(rule)
    moved = dict(zip(states(made), state, strict=True))
    named = {each.name: x for each, x in zip(tensors(made), given, strict=True)}
    kept = dict(zip(used_chunk_states(made, True), starts, strict=True)) if starts else {}
    overlap.check_states_apart(moved, kept, named)
    if found.checks_values:
        check_values(made, given, [*state, *starts])
    if found.operator is not None:
        y = launch_rule.step(found.operator, given, state, starts, found.sequences)
        quick_step.remember(key, found, quick is not None, made, given, [*state, *starts])
        return y
    with autocast.off(given[0].device):
        return eager.step(made, named, moved, kept or None)


step = transforms.operator("trellis_ops::memory_step", run_step, "memory_step", _STEP)


@step.register_fake
def _(given: list[Tensor], state: list[Tensor], starts: list[Tensor], rule: str, implementation: str | None) -> Tensor:
    request = family_arguments.step_request(rule_of(rule), given, state, starts)
    return given[0].new_empty((*given[0].shape[:2], request.spec.problem.dim_v))
