"""A kernel beside what a user would run without it, in one run, in turn, on the same machine."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

import torch

from codegen.device import Device
from codegen.kernels.build import build
from codegen.kernels.signatures import MOVES_STATES
from codegen.schedules.registry import from_settings
from codegen.spec import Spec
from tuner.errors import ThrottledError
from tuner.measure.baselines.baseline import baseline_call
from tuner.measure.baselines.rivals import rivals_of
from tuner.measure.measure import measure
from tuner.measure.timed import Timed
from tuner.policy import Policy, policy_for
from tuner.space.legal import Settings
from tuner.verify.inputs.trellis import make_inputs, timing_inputs
from tuner.verify.launch import bind

KERNEL, EAGER, COMPILED, FLOOR = "kernel", "eager", "torch.compile", "one head alone"
_ROUNDS = 30
_REASON = 300

# The eager implementation is a loop over chunks, which torch.compile unrolls: it takes minutes for more of them.
_COMPILED_CHUNKS = 8
_FEWEST_COMPILED_TOKENS = 32


@dataclass(frozen=True)
class SideBySide:
    """Medians of calls that were timed in turn.

    Attributes:
        seconds: by name. `FLOOR` is the kernel for one sequence and head: the chain of chunks that no number of
            multiprocessors shortens. `torch.compile` has sequences of so many tokens as its name says, and so has the
            kernel beside it, by the same name but for the first word.
        left_out: why something is missing, by its name.
    """

    seconds: dict[str, float]
    left_out: dict[str, str] = field(default_factory=dict)


def side_by_side(
    spec: Spec, device: Device, backend: str, settings: Settings, seconds: float, ready: Collection[str]
) -> SideBySide:
    """Time a schedule of `spec` beside its rivals, for about so many seconds.

    Args:
        spec, device, backend, settings: the schedule, and what it is for.
        seconds: in all.
        ready: which of the rivals that take long to compile may be timed: `COMPILED`, and those of
            `tuner.measure.baselines.rivals.compiled_long`.
    """
    calls = {KERNEL: _kernel(spec, device, backend, settings), FLOOR: _floor(spec, device, backend, settings)}
    calls[EAGER] = baseline_call(spec, timing_inputs(spec, device), lambda function: function)
    others, left_out = rivals_of(spec, device, ready)
    if COMPILED in ready:
        short = compiled_spec(spec)
        of_length = "" if short == spec else f", {short.problem.tokens} tokens"
        calls[COMPILED + of_length] = compiled_call(short, device)
        calls[KERNEL + of_length] = _kernel(short, device, backend, settings)
    else:
        left_out[COMPILED] = "it was not compiled in the time there was"
    is_step = spec.problem.operator in MOVES_STATES or spec.problem.layer is not None
    graph = device.kind != "cpu" and is_step
    policy = policy_for(device, None if device.kind == "cpu" or graph else "gpu-events")
    with torch.set_grad_enabled(spec.problem.direction != "forward"):
        able = _able(calls | others, device, policy, left_out)
        timings = measure(able, device, seconds=seconds, rounds=_ROUNDS, policy=policy)
    return SideBySide({name: timing.seconds for name, timing in timings.items()}, left_out)


def _able(calls: dict[str, Timed], device: Device, policy: Policy, left_out: dict[str, str]) -> dict[str, Timed]:
    """The calls that can be timed; a rival that fails, for want of memory or in a graph, costs no other its time."""
    able = {}
    for name, call in calls.items():
        try:
            measure({name: call}, device, seconds=0.0, rounds=1, least=1, policy=policy)
        except ThrottledError:
            raise  # No fault of the rival.
        except Exception as error:
            if name.startswith(KERNEL) or name == FLOOR:
                raise
            left_out[name] = f"it failed: {type(error).__name__}: {error}"[:_REASON]
            continue
        able[name] = call
    return able


def compiled_spec(spec: Spec) -> Spec:
    """`spec` with so few tokens that `torch.compile` of the eager implementation takes less than a minute."""
    most = max(_COMPILED_CHUNKS * spec.problem.chunk, _FEWEST_COMPILED_TOKENS)
    return replace(spec, problem=replace(spec.problem, tokens=min(spec.problem.tokens, most)))


def compiled_call(spec: Spec, device: Device) -> Timed:
    """`torch.compile` of the eager implementation on inputs of its own; the first run compiles."""
    lengths = (spec.problem.tokens,) * spec.problem.batch
    inputs = make_inputs(spec, lengths, device, drawn_there=True)
    return baseline_call(spec, inputs, lambda function: torch.compile(function, dynamic=False))


def _kernel(spec: Spec, device: Device, backend: str, settings: Settings) -> Timed:
    operator = build(spec, from_settings(backend, dict(settings)), device)
    lengths = (spec.problem.tokens,) * spec.problem.batch
    launch = bind(operator, make_inputs(spec, lengths, device, drawn_there=True))
    return Timed(launch.run, launch.reset_states)


def _floor(spec: Spec, device: Device, backend: str, settings: Settings) -> Timed:
    return _kernel(replace(spec, problem=replace(spec.problem, batch=1, heads=1)), device, backend, settings)
