"""The toy's compiler: the functions of `codegen.backends.Backend`, of which only kernels have anything to do."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from codegen.backends import Resources
from codegen.device import Device, cpu
from codegen.errors import BackendUnavailableError
from codegen.kernels.signatures import kernel_arguments
from codegen.render import Source
from codegen.schedules.schedule import Schedule
from codegen.spec import Spec
from tests.toy_backend.schedule import ToySchedule
from trellis_ops.eager import forward

name = "toy"


@dataclass(frozen=True)
class ToyKernel:
    """One of the kernels `trellis_fused` and `memory_step`, which differ in nothing here."""

    spec: Spec
    names: tuple[str, ...]
    heads_at_once: int

    def __call__(self, programs: int, *arguments: Tensor | int) -> None:
        """Move S_k and S_v over all tokens in place, and write y."""
        given = {name: x for name, x in zip(self.names, arguments, strict=True) if isinstance(x, Tensor)}
        for first in range(0, given["log_decay"].shape[1], self.heads_at_once):
            self._run(given, slice(first, first + self.heads_at_once))

    def _run(self, given: dict[str, Tensor], heads: slice) -> None:
        tokens = [given[name][:, heads].unsqueeze(0) for name in ("q", "k", "v", "target", "log_decay")]
        step_size = given["step_size"]
        steps = step_size[heads] if step_size.ndim == 1 else step_size[:, heads].unsqueeze(0)
        states = given["S_k"][:, heads], given["S_v"][:, heads]
        y, after = forward.attention(
            *tokens,
            step_size=steps,
            rule=self.spec.rule,
            chunk_size=self.spec.problem.chunk,
            initial_state=states,
            cu_seqlens=given["cu_seqlens"],
        )
        given["y"][:, heads] = y[0]
        for state, moved in zip(states, after, strict=True):
            state.copy_(moved)


def why_unavailable(device: Device) -> str | None:
    """On the CPU of this machine they can run."""
    return None if device == cpu() else f"the toy runs on {cpu().key()} only, not on {device.key()}"


def why_broken() -> str | None:
    """It never is."""
    return None


def kernel(template: str, spec: Spec, schedule: Schedule, device: Device) -> ToyKernel:
    """Nothing to compile."""
    assert isinstance(schedule, ToySchedule)
    names = tuple(argument.name for argument in kernel_arguments(template, spec, schedule))
    return ToyKernel(spec, names, schedule.heads_at_once)


def compile(source: Source, spec: Spec, schedule: Schedule, device: Device) -> ToyKernel:
    """Raise: there are no sources."""
    raise BackendUnavailableError(backend=name, reason="its kernels have no source")


def inspect(source: Source, spec: Spec, schedule: Schedule, device: Device) -> dict[str, str]:
    """Raise: there are no sources."""
    raise BackendUnavailableError(backend=name, reason="its kernels have no source")


def resources(source: Source, spec: Spec, schedule: Schedule, device: Device) -> Resources:
    """Raise: there are no sources."""
    raise BackendUnavailableError(backend=name, reason="its kernels have no source")


def why_no_resources(device: Device) -> str | None:
    """Always."""
    return "its kernels have no source"


def toolchain() -> dict[str, str]:
    """PyTorch is all that computes."""
    return {"torch": str(torch.__version__)}
