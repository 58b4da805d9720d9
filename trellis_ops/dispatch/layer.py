"""Which kernel takes a layer of a model one token further: a tuned winner, the default, or none."""

from __future__ import annotations

import functools
from dataclasses import replace

import torch

from codegen.backends import Kernel
from codegen.schedules.registry import backends, first_choice, variants_of
from codegen.spec import Spec, of_rows
from trellis_ops.calls.arguments import Request
from trellis_ops.dispatch.resolve import Resolution, device_of, forced_implementation, resolve
from trellis_ops.dispatch.served import operator_of
from trellis_ops.specs import recorded

CPU = torch.device("cpu")


def serves(operator: str, device: torch.device) -> bool:
    """Whether the backend that is forced, or that serves calls on `device`, has kernels of an operator of layers."""
    return _has_kernels(operator, forced_implementation(None), device, backends())


# Every token asks, and finds none of this in a cache that its weights have gone through.
@functools.lru_cache
def _has_kernels(operator: str, forced: str | None, device: torch.device, known: tuple[str, ...]) -> bool:
    name = forced or first_choice(device_of(device))
    return name in known and bool(variants_of(operator, name))


def resolved(spec: Spec, device: torch.device = CPU) -> Resolution:
    """What serves `spec` on the threads that torch may use: a backend with a schedule, or eager and why."""
    forced = forced_implementation(None)
    # A backend that has no such kernel still serves the memories of whoever asked for it.
    own = forced if forced == "eager" or serves(spec.problem.operator, device) else "eager"
    return resolve(Request(spec, device, float64=False), own)


def kernel_of(spec: Spec, device: torch.device = CPU) -> Kernel | None:
    """The kernel of `spec` on the threads that torch may use, which is recorded; None where modules have to compute it.

    Raises:
        TrellisError: it does not compile.
    """
    operator = operator_of(resolved(spec, device), spec)
    if operator is None:
        return None
    # What is tuned for rows serves pools.
    recorded.record(replace(spec, problem=of_rows(spec.problem)), device.type)
    return operator.kernels[0]
