"""Compiled operators whose kernels are real, and something that is done to what they wrote."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from codegen.device import cpu
from codegen.kernels.build import build
from codegen.kernels.operator import CompiledOperator
from codegen.schedules.registry import default
from codegen.spec import Spec


def compiled(spec: Spec) -> CompiledOperator:
    return build(spec, default("tvm", spec, cpu()), cpu())


@dataclass(frozen=True)
class Tampered:
    """A real kernel, and something done to its arguments, by name, after it ran."""

    kernel: Any
    names: tuple[str, ...]
    tamper: Any

    def __call__(self, programs: int, *arguments: Any) -> None:
        self.kernel(programs, *arguments)
        self.tamper(dict(zip(self.names, arguments, strict=True)))


def names_of(operator: CompiledOperator, launch: int) -> tuple[str, ...]:
    return tuple(name for name, _ in operator.steps[launch].arguments)


def tampered(spec: Spec, tamper: Any, launch: int = 0) -> CompiledOperator:
    operator = compiled(spec)
    kernels = list(operator.kernels)
    kernels[launch] = Tampered(kernels[launch], names_of(operator, launch), tamper)
    return replace(operator, kernels=tuple(kernels))
