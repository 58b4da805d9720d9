"""Calls of the same size that must cost about the same, or a known part of each other: timed in turn."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from codegen.device import Device
from codegen.kernels.build import build
from codegen.rule import Rule
from codegen.schedules.registry import default
from codegen.spec import Problem, Spec
from tests.benchmarks.results.comparison import without_records
from tests.benchmarks.results.targets import Target
from tests.benchmarks.subjects.calls import subject
from tests.benchmarks.turns import ratio, sample, take_turns
from trellis_ops import explain, forget
from tuner.duration import duration
from tuner.measure.timed import Timed, Timing
from tuner.verify.inputs.trellis import timing_inputs, torch_device
from tuner.verify.launch import bind

_SECONDS = 4.0
_ROUNDS = 200
_LEAST_ROUNDS = 15


@dataclass(frozen=True)
class Relation:
    """One call beside another.

    Attributes:
        name: what is related, as the report names it.
        over, under: two of the names in `timings`; `over`'s time is divided by `under`'s.
        least: whether the quotient must be at least `limit`, or at most.
    """

    name: str
    over: str
    under: str
    limit: float
    least: bool
    timings: dict[str, Timing]

    def target(self) -> Target:
        """The quotient, the median over the rounds, with its limit."""
        over, under = self.timings[self.over], self.timings[self.under]
        remark = f"{self.over} {duration(over.seconds)}, {self.under} {duration(under.seconds)}"
        return Target(self.name, ratio(over, under), self.limit, self.least, remark=remark)


@torch.no_grad()
def time_operators(problems: dict[str, Problem], device: Device) -> dict[str, Timing]:
    """The public operator on each problem in turn, every one by its default schedule.

    Without the tuning records, since a winner of one of them would say something else about the relation.
    """
    samplers = {}
    forget()
    with without_records():
        for name, problem in problems.items():
            bound = subject(Spec(Rule(), problem), torch_device(device))
            bound.operator()
            samplers[name] = functools.partial(sample, Timed(bound.operator, bound.reset), device)
    timings = take_turns(samplers, seconds=_SECONDS, rounds=_ROUNDS, least=_LEAST_ROUNDS)
    forget()
    return timings


def why_no_kernel(problem: Problem, device: Device) -> str | None:
    """Why the public operator would not run a kernel on `problem`; None if it does."""
    bound = subject(Spec(Rule(), replace(problem, tokens=1)), torch_device(device))
    found = explain(bound.operator.function, *bound.operator.args, **bound.operator.kwargs)
    return None if found.schedule is not None else "; ".join(found.notes)


@torch.no_grad()
def time_threads(problem: Problem, counts: tuple[int, ...], device: Device) -> dict[str, Timing]:
    """The kernels that a machine with so many cores would run by default, in turn, with as many threads for torch."""
    spec = Spec(Rule(), problem)
    inputs = timing_inputs(spec, device)
    samplers = {}
    for count in counts:
        schedule = default("tvm", spec, replace(device, cores=count))
        launch = bind(build(spec, schedule, device), inputs)
        call = Timed(launch.run, _reset(launch.reset_states, count))
        samplers[f"{count} thread{'s' if count > 1 else ''}"] = functools.partial(sample, call, device)
    before = torch.get_num_threads()
    try:
        return take_turns(samplers, seconds=_SECONDS, rounds=_ROUNDS, least=_LEAST_ROUNDS)
    finally:
        torch.set_num_threads(before)


def _reset(states: Callable[[], None], threads: int) -> Callable[[], None]:
    def reset() -> None:
        torch.set_num_threads(threads)
        states()

    return reset
