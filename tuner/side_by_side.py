"""A kernel beside what a user would run without it, in one run, in turn, on the same machine."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from codegen.device import Device
from codegen.program import build
from codegen.schedule import from_settings
from codegen.spec import Spec
from tuner.baseline import baseline_call
from tuner.inputs import timing_inputs, torch_device
from tuner.launch import bind
from tuner.legal import Settings
from tuner.measure import Timed, measure
from tuner.neighbours import neighbours

KERNEL, EAGER, COMPILED, FLOOR = "kernel", "eager", "torch.compile", "one head alone"
_ROUNDS = 30


@dataclass(frozen=True)
class SideBySide:
    """Medians of calls that were timed in turn.

    Attributes:
        seconds: by name. `FLOOR` is the kernel for one sequence and head: the chain of chunks that no number of
            multiprocessors shortens.
        left_out: why something is missing, by its name.
    """

    seconds: dict[str, float]
    left_out: dict[str, str] = field(default_factory=dict)


def side_by_side(
    spec: Spec, device: Device, backend: str, settings: Settings, seconds: float, with_compile: bool
) -> SideBySide:
    """Time a schedule of `spec` beside its rivals, for about so many seconds."""
    calls = {KERNEL: _kernel(spec, device, backend, settings), FLOOR: _floor(spec, device, backend, settings)}
    inputs = timing_inputs(spec, device)
    calls[EAGER] = baseline_call(spec, inputs, lambda function: function)
    if with_compile:
        calls[COMPILED] = baseline_call(spec, inputs, lambda function: torch.compile(function, dynamic=False))
    others, left_out = neighbours(spec, torch_device(device))
    if not with_compile:
        left_out[COMPILED] = "compiling takes minutes, more than was left"
    with torch.set_grad_enabled(spec.problem.direction != "forward"):
        timings = measure(calls | others, device, seconds=seconds, rounds=_ROUNDS)
    return SideBySide({name: timing.seconds for name, timing in timings.items()}, left_out)


def _kernel(spec: Spec, device: Device, backend: str, settings: Settings) -> Timed:
    program = build(spec, from_settings(backend, dict(settings)), device)
    launch = bind(program, timing_inputs(spec, device))
    return Timed(launch.run, launch.reset_states)


def _floor(spec: Spec, device: Device, backend: str, settings: Settings) -> Timed:
    return _kernel(replace(spec, problem=replace(spec.problem, batch=1, heads=1)), device, backend, settings)
