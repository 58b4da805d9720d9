"""The errors of every form of a rule beside the oracle, or why a form does not compute the rule."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from codegen.device import Device
from codegen.kernels.build import build
from codegen.recurrence.tensors import HEAD, states, tensors
from codegen.rule import Rule
from codegen.schedules.legality import why_illegal
from codegen.schedules.registry import SCHEDULES, variants_of
from codegen.schedules.schedule import Schedule
from codegen.spec import Problem, Spec
from tests.benchmarks.rule_table.forms import nearest_forms
from trellis_ops.eager import recurrence
from tuner.verify import check
from tuner.verify.inputs.trellis import Inputs, make_inputs
from tuner.verify.launch import bind
from tuner.verify.oracle import oracle

Named = dict[str, Tensor]
Errors = dict[str, float | str]
"""By variant: the largest relative error, or why no schedule of it computes the rule."""

EAGER = "eager"
"""What stands for a backend, and for its only variant, where the eager walk computes."""

CHUNKS = (1, 16)
"""C of the calls: z at every token, and of what does not compute the rule so, at the start of a chunk of several."""

_TOLD_AT = {"split_one_pass": 16, "stale_chunks": 16}
"""The C whose reason is told of a variant that computes a rule with neither; 1 of the others."""


@dataclass(frozen=True)
class FormCall:
    """What all variants of a backend are judged on.

    Attributes:
        rule: what is computed.
        operator, direction: of `codegen.spec.Problem`.
        tokens, dim: T of the longer of two packed sequences, and D_k = D_v = M.
    """

    rule: Rule
    operator: str
    direction: str
    tokens: int
    dim: int

    def specs(self) -> Iterator[Spec]:
        """One of each C."""
        for chunk in CHUNKS:
            sizes = (1, self.tokens, 1, self.dim, self.dim, self.dim, chunk)
            yield Spec(self.rule, Problem(self.operator, *sizes, direction=self.direction))


def errors_by_form(call: FormCall, backend: str, device: Device) -> Errors:
    """The largest error of outputs and final states, or of a backward of all gradients, at the first C that has one."""
    found: Errors = {}
    for spec in call.specs():
        inputs = make_inputs(spec, (call.tokens, call.tokens // 2 + 1), device)
        for variant, form in _forms(spec, backend, device).items():
            if isinstance(found.get(variant), float):
                continue
            if not isinstance(form, str):
                found[variant] = _error(spec, inputs, form)
            elif variant not in found or spec.problem.chunk == _TOLD_AT.get(variant, 1):
                found[variant] = form
    return found


def _forms(spec: Spec, backend: str, device: Device) -> dict[str, Callable[[Inputs], Named] | str]:
    """By variant: what computes it, by the schedule nearest to the default, or why none does."""
    if backend == EAGER:
        return {EAGER: lambda inputs: _eager(spec, inputs)}
    legal = nearest_forms(spec, backend, device)
    variants = variants_of(spec.problem.operator, backend, spec.problem.direction)
    return {
        variant: _by(spec, legal[variant], device) if variant in legal else why_none(spec, backend, variant, device)
        for variant in variants
    }


def _by(spec: Spec, schedule: Schedule, device: Device) -> Callable[[Inputs], Named]:
    return lambda inputs: bind(build(spec, schedule, device), inputs).outputs_of_run()


def why_none(spec: Spec, backend: str, variant: str, device: Device) -> str:
    """The reason that most schedules of a variant are illegal for, of those that name the rule and no setting."""
    kind = SCHEDULES[backend]
    every = itertools.product(*kind.choices.values())
    schedules = (kind(variant, **dict(zip(kind.choices, values, strict=True))) for values in every)  # type: ignore[call-arg]
    reasons = Counter(str(why_illegal(spec, schedule, device)) for schedule in schedules)
    reason = max(reasons, key=lambda each: (not any(name in each for name in kind.choices), reasons[each]))
    return reason.removeprefix(f"variant {variant!r} does not compute this rule: ")


def _error(spec: Spec, inputs: Inputs, form: Callable[[Inputs], Named]) -> float:
    wanted = oracle(spec, inputs)
    outputs = form(inputs)
    # What each head has gets a gradient of every sequence from a kernel, and their sum from autograd.
    summed = {name: x.sum(0) if outputs[name].ndim < x.ndim else x for name, x in wanted.items()}
    errors = check.compare(outputs, summed, check.TOLERANCE[spec.problem.dtype]).errors
    gradients = spec.problem.direction != "forward"
    return max(error for name, error in errors.items() if name.startswith("d") == gradients)


def _eager(spec: Spec, inputs: Inputs) -> Named:
    """Outputs, final states and of a backward the gradients by autograd, named as the oracle names them."""
    rule = spec.rule
    per_head = {each.name for each in tensors(rule) if each.per == HEAD}
    names = (*(each.name for each in tensors(rule)), *states(rule))
    leaves = {name: inputs[name].clone().requires_grad_() for name in names}
    given = {each.name: leaves[each.name] for each in tensors(rule)}
    with torch.enable_grad():
        y, finals = recurrence.attention(
            rule,
            {name: x if name in per_head else x[None] for name, x in given.items()},
            {name: leaves[name] for name in states(rule)},
            chunk_size=spec.problem.chunk,
            cu_seqlens=inputs.sequences.cu_seqlens,
        )
        outputs = {"y": y[0]} | finals
        if spec.problem.direction == "forward":
            return {name: x.detach() for name, x in outputs.items()}
        incoming = [inputs[f"d{name}"] for name in outputs]
        found = torch.autograd.grad(
            list(outputs.values()), list(leaves.values()), incoming, allow_unused=True, materialize_grads=True
        )
    gradients = {f"d{name}": x for name, x in zip(leaves, found, strict=True)}
    return {name: x.detach() for name, x in outputs.items()} | gradients
