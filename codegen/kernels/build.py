"""From a spec and a schedule to a compiled operator, and the digests of what decides its kernels."""

from __future__ import annotations

import functools
from dataclasses import replace

from codegen.backends import backend
from codegen.device import Device
from codegen.interruption.unforked import unforked
from codegen.kernels.declared import kernels_of, launches_for
from codegen.kernels.operator import CompiledOperator
from codegen.render import template_digest
from codegen.schedules.legality import require_legal
from codegen.schedules.registry import kind_of
from codegen.schedules.schedule import Schedule
from codegen.spec import Problem, Spec


def build(spec: Spec, schedule: Schedule, device: Device) -> CompiledOperator:
    """Render and compile the kernels of `schedule`; the same arguments give the same operator again.

    B, T and H do not enter the kernels, so one operator serves every batch, length and number of heads; H enters those
    of a layer.

    Raises:
        IllegalScheduleError, TemplateError, CompileError, BackendUnavailableError: as their names say.
    """
    require_legal(spec, schedule, device)
    return build_legal(spec, schedule, device)


def build_legal(spec: Spec, schedule: Schedule, device: Device) -> CompiledOperator:
    """As `build`, of a schedule that is known to be legal, as that of a resolved call is.

    Raises:
        TemplateError, CompileError, BackendUnavailableError: as their names say.
    """
    heads = 1 if spec.problem.layer is None else spec.problem.heads
    # Neither compiler is made for several threads at once, and a kernel is wanted once.
    with unforked():
        return _build(replace(spec, problem=replace(spec.problem, batch=1, tokens=1, heads=heads)), schedule, device)


@functools.lru_cache(maxsize=512)
def _build(spec: Spec, schedule: Schedule, device: Device) -> CompiledOperator:
    compiler = backend(schedule.backend)
    kernels = tuple(
        compiler.kernel(kernel, part, schedule.of_kernel(kernel), device) for kernel, part in parts(spec, schedule)
    )
    return CompiledOperator(spec, schedule, device, kernels)


def parts(spec: Spec, schedule: Schedule) -> tuple[tuple[str, Spec], ...]:
    """The kernels of `schedule.variant` in launch order, each with the spec it is rendered for."""
    return tuple((launch.kernel, launch.spec_of(spec)) for launch in launches_for(spec, schedule))


def operator_digest(problem: Problem, backend_name: str) -> str:
    """Digest of the kernels of every variant of the problem's operator and direction, which keys studies and records.

    It needs no schedule, so a lookup can form it, and a change to any variant reopens the question which one wins.
    """
    kind = kind_of(backend_name)
    variants = kind.variants_of(problem.operator, problem.direction)
    kernels = {kernel for variant in variants for kernel in kernels_of(variant, backend_name)}
    return template_digest(kind, tuple(sorted(kernels)))
