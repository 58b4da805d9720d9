"""The forms of a rule that a backend has kernels for: a schedule of each variant, and the winner that is known."""

from __future__ import annotations

from dataclasses import replace

import torch

from codegen.device import Device
from codegen.recurrence.forms import why_no_chunk_form, why_no_split_form, why_no_stale_form
from codegen.rule import Rule
from codegen.schedules.registry import default, first_choice, variants_of
from codegen.schedules.schedule import ONE_PASS, STALE, Schedule
from codegen.spec import Spec
from trellis_ops.calls.arguments import Request
from trellis_ops.dispatch import resolve
from tuner.space.legal import changes, legal_schedules
from tuner.verify.inputs.trellis import torch_device

TUNED = ", tuned"

AT_ONCE = ("chunks", ONE_PASS, STALE)
"""Variants of any rule that compute the tokens of a tile at once: its chunk forms."""


def why_no_forms_at_once(rule: Rule, chunk: int) -> dict[str, str | None]:
    """By each of `AT_ONCE`: why it does not compute the rule; None where it does."""
    why_not = (why_no_chunk_form, why_no_split_form, why_no_stale_form)
    return {variant: why(rule, chunk) for variant, why in zip(AT_ONCE, why_not, strict=True)}


def as_called(spec: Spec) -> Spec:
    """What the public operators of rules compute `spec` as: TRELLIS has operators of its own."""
    if not spec.rule.is_trellis:
        return spec
    own = spec.problem.operator.replace("memory_", "trellis_", 1)
    return replace(spec, problem=replace(spec.problem, operator=own))


def forms_of(spec: Spec, device: Device) -> dict[str, Schedule]:
    """By variant: of each that computes `spec`, the legal schedule that differs least from the default.

    A winner that is known for the spec, or for its bucket, has its variant's name with `TUNED` behind it.

    Raises:
        NoScheduleError: no schedule is legal.
    """
    forms = nearest_forms(spec, first_choice(device), device)
    served = served_by(spec, device)
    if served is not None and served not in forms.values():
        forms[served.variant + TUNED] = served
    return forms


def nearest_forms(spec: Spec, backend: str, device: Device) -> dict[str, Schedule]:
    """By variant: of each of `backend` that computes `spec`, the legal schedule that differs least from the default.

    Raises:
        NoScheduleError: no schedule is legal.
    """
    usual, legal = default(backend, spec, device), legal_schedules(spec, backend, device)
    forms = {}
    for variant in variants_of(spec.problem.operator, backend, spec.problem.direction):
        own = [schedule for schedule in legal if schedule.variant == variant]
        if own:
            forms[variant] = min(own, key=lambda schedule: changes(schedule, usual))
    return forms


def served_by(spec: Spec, device: Device) -> Schedule | None:
    """The schedule that a call of `spec` runs on; None where eager serves it."""
    request = Request(spec, torch.device(torch_device(device)), float64=False)
    return resolve.resolve(request, None).schedule
