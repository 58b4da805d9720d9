"""What the options of `python -m codegen show` stand for: a spec, and a schedule that is legal for it."""

from __future__ import annotations

import argparse
import itertools
from dataclasses import replace

from codegen.device import Device
from codegen.errors import IllegalScheduleError, KernelOfBackendError, RuleError, TrellisError, UnknownKernelError
from codegen.input_maps import InputMaps
from codegen.kernels import exact_update
from codegen.kernels.declared import is_of_a_backward, kernels_of
from codegen.kernels.rule_arguments import CHUNKS, STALE
from codegen.rule import Rule
from codegen.rule_text import rule_of_text
from codegen.rules import rule_named
from codegen.schedules.legality import why_illegal
from codegen.schedules.registry import backends, default, from_settings, variants_of
from codegen.schedules.schedule import Schedule
from codegen.show.options import ALL_OPERATORS, LAYER
from codegen.spec import DIRECTIONS, FAMILY_OPERATORS, INPUT_OPERATORS, LAYER_OPERATORS, Problem, Spec


def spec_of(options: argparse.Namespace) -> Spec:
    """The rule, sizes and types that the options name, or the kernel's own.

    Raises:
        RuleError: they name a rule twice; SizeError: a size outside its range.
    """
    rule = _rule(options)
    dim = Problem().dim_k if options.dim is None else options.dim
    dim_v = dim if options.dim_v is None else options.dim_v
    operator = options.operator or _operator_of(options.kernel, rule)
    usual_chunk = 1 if operator in FAMILY_OPERATORS or options.kernel == exact_update.KERNEL else Problem().chunk
    problem = Problem(
        operator=operator,
        batch=1,
        # The default for few tokens is a walk, whose settings need not suit tiles.
        tokens=Problem().tokens if options.kernel in (*CHUNKS, STALE) else 1,
        heads=options.heads if operator in LAYER_OPERATORS else 1,
        dim_k=dim if options.dim_k is None else options.dim_k,
        dim_v=dim_v,
        slots=options.slots if rule.passes == 2 else dim_v,
        chunk=usual_chunk if options.chunk is None else options.chunk,
        dtype=options.dtype,
        direction=options.direction or ("backward" if is_of_a_backward(options.kernel) else "forward"),
        layer=(options.layer or LAYER) if operator in LAYER_OPERATORS else None,
        inputs=(options.inputs or InputMaps()) if operator in INPUT_OPERATORS else None,
    )
    return Spec(rule, problem)


def _rule(options: argparse.Namespace) -> Rule:
    by_options = Rule(options.phi, options.link, options.out, options.phi_eps, options.step_size)
    if options.rule is None:
        return by_options
    if by_options != Rule():
        reason = "it is the whole rule; leave out --phi, --phi-eps, --link, --out and --step-size"
        raise RuleError(field="rule", value=options.rule, reason=reason)
    return rule_of_text(options.rule) if options.rule.lstrip().startswith("{") else rule_named(options.rule)


def schedule_of(options: argparse.Namespace, spec: Spec, device: Device) -> Schedule:
    """The default schedule with the fields that are set instead.

    Raises:
        UnknownKernelError, KernelOfBackendError: the backend has no such kernel for this.
        IllegalScheduleError: the schedule cannot serve the spec there.
    """
    own = _variants_with(options.kernel, options.backend, spec.problem)
    if not own:
        raise _no_kernel(options.kernel, options.backend, spec.problem)
    settings: dict[str, object] = {**default(options.backend, spec, device).settings(), "variant": own[0]}
    for assignment in options.set:
        name, _, value = assignment.partition("=")
        settings[name] = int(value) if value.isdecimal() else value
    schedule = from_settings(options.backend, settings)
    # memory_update as a part of "split" is rendered for its own operator, so the variant may be another's.
    reason = why_illegal(spec, replace(schedule, variant=own[0]), device)
    if reason is not None:
        raise IllegalScheduleError(schedule=schedule.key(), spec=spec.key(), reason=reason)
    return schedule


def _operator_of(kernel: str, rule: Rule) -> str:
    """The kernel's own operator, if attention is not the only one that launches it; TRELLIS' for its rules."""
    if kernel == exact_update.KERNEL and rule.is_trellis:
        return "trellis_attention"
    for operator in ALL_OPERATORS:
        kinds = itertools.product(backends(), DIRECTIONS)
        variants = {(variant, name) for name, way in kinds for variant in variants_of(operator, name, way)}
        launched = {each for variant, name in variants for each in kernels_of(variant, name)}
        if operator != "trellis_attention" and kernel in launched:
            return operator
    return "trellis_attention"


def _variants_with(kernel: str, backend_name: str, problem: Problem) -> list[str]:
    variants = variants_of(problem.operator, backend_name, problem.direction)
    return [variant for variant in variants if kernel in kernels_of(variant, backend_name)]


def _no_kernel(kernel: str, backend_name: str, problem: Problem) -> TrellisError:
    """The error that says who has the kernel, if another backend does, and what this one has instead."""
    variants = variants_of(problem.operator, backend_name, problem.direction)
    has = sorted({each for variant in variants for each in kernels_of(variant, backend_name)})
    known = f"{', '.join(has)} (what {backend_name} has for {problem.operator}, {problem.direction})"
    other = next((name for name in backends() if _variants_with(kernel, name, problem)), None)
    if other is None:
        return UnknownKernelError(name=kernel, known=known)
    return KernelOfBackendError(name=kernel, backend=backend_name, other=other, known=known)
