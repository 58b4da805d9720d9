"""A training step of the operator: forward and backward, by kernels, by autograd of eager code, by `torch.compile`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from codegen.device import Device
from codegen.rule import Rule
from codegen.spec import Problem, Spec
from tests.benchmarks.results.targets import Target
from tests.benchmarks.studies.growth.training_memory import STEPS, training_bytes
from tests.benchmarks.subjects.calls import subject, training_step
from tests.benchmarks.subjects.rivals import CEILING, COMPILE, EAGER, Rivals
from tests.benchmarks.turns import ratio, sample, take_turns
from trellis_ops.lm.train.processes.allocator import keep_freed_memory
from tuner.duration import duration
from tuner.measure.cost import cost_of
from tuner.measure.timed import Timed, Timing
from tuner.verify.inputs.trellis import torch_device

PROBLEM = Problem(batch=1, heads=8, tokens=4096, chunk=64)
FORWARD, BILEVEL, FIRST_ORDER = "forward", "bilevel", "first order"
LEAST_TO_EAGER, MOST_TO_FORWARD = 6.0, 2.8

_SECONDS = 8.0
_ROUNDS = 100
_LEAST_ROUNDS = 7


@dataclass(frozen=True)
class Training:
    """What training steps took.

    Attributes:
        timings: of the kernels' forward that keeps states, of their whole steps by meaning of the gradient, of the
            others' steps, and of what a bilevel step would take at the nearer limit of the machine; samples of the
            same index were taken in the same round.
        peaks: bytes beyond the inputs, by what computes the step.
        notes: on the others.
    """

    timings: dict[str, Timing]
    peaks: dict[str, int]
    notes: dict[str, str]

    def backward(self, meaning: str) -> Timing:
        """What a step takes beyond its forward, round by round."""
        rounds = zip(self.timings[meaning].samples, self.timings[FORWARD].samples, strict=True)
        return Timing(tuple(step - forward for step, forward in rounds))

    def targets(self) -> list[Target]:
        """What must be reached."""
        step, forward = self.timings[BILEVEL], self.timings[FORWARD]
        at_the_ceiling = ratio(self.timings[EAGER], self.timings[CEILING])
        of_eager = (
            f"step {duration(step.seconds)}, {ratio(self.timings[CEILING], step):.0%} of the ceiling;"
            f" eager {duration(self.timings[EAGER].seconds)}; {at_the_ceiling:.1f}x at the ceiling"
        )
        backward = self.backward(BILEVEL)
        of_forward = f"backward {duration(backward.seconds)}, forward {duration(forward.seconds)}"
        to_eager = ratio(self.timings[EAGER], step)
        return [
            Target("training step", to_eager, LEAST_TO_EAGER, True, "autograd of eager", of_eager, "{:.1f}x".format),
            Target("backward to forward", ratio(backward, forward), MOST_TO_FORWARD, False, remark=of_forward),
        ]

    def remarks(self) -> list[str]:
        """What has no limit."""
        step, first_order = self.timings[BILEVEL], self.backward(FIRST_ORDER)
        found = [f"first-order backward: {duration(first_order.seconds)}"]
        if COMPILE in self.timings:
            compiled = self.timings[COMPILE]
            found.append(f"training step: {ratio(compiled, step):.1f}x torch.compile ({duration(compiled.seconds)})")
        found.append(f"torch.compile of a training step: {self.notes[COMPILE]}")
        held = ", ".join(f"{name} {peak / 1e6:.0f} MB" for name, peak in self.peaks.items())
        return [*found, f"a training step's peak of memory beyond its inputs: {held}"]


def train(device: Device, rivals: Rivals, compile_limit: float) -> Training:
    """Time steps at `PROBLEM` in turn, and measure what they hold.

    All of them run in processes that keep what they free, as the command that trains does.
    """
    keep_freed_memory()
    spec = Spec(Rule(), PROBLEM)
    notes = rivals.prepare_training(spec, compile_limit)
    rivals.prepare_ceiling(PROBLEM.dtype, cost_of(Spec(Rule(), replace(PROBLEM, direction="backward"))))
    bound = subject(spec, torch_device(device), gradients=True)
    first_order = subject(spec, torch_device(device), gradients=True)
    first_order.operator.kwargs["outer_gradient"] = "first_order"
    runs: dict[str, Callable[[], object]] = {
        FORWARD: torch.enable_grad()(bound.operator.y),
        BILEVEL: training_step(bound, bound.operator),
        FIRST_ORDER: training_step(first_order, first_order.operator),
    }
    samplers = {name: functools.partial(sample, Timed(run, lambda: None), device) for name, run in runs.items()}
    others = [EAGER] if notes[COMPILE].startswith(("torch.compile", "not compiled")) else [EAGER, COMPILE]
    samplers |= {name: rivals.sampler(name) for name in (*others, CEILING)}
    timings = take_turns(samplers, seconds=_SECONDS, rounds=_ROUNDS, least=_LEAST_ROUNDS)
    peaks = {label: training_bytes(by, PROBLEM.tokens) for by, label in STEPS.items()}
    return Training(timings, peaks, notes)
