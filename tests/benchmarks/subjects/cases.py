"""What is compared: the specs that `make tune` tunes, and what the tuned operator must reach on some of them."""

from __future__ import annotations

from dataclasses import dataclass

from codegen.device import Device
from codegen.spec import Problem, Spec
from trellis_ops.specs.workload import load_workload
from tuner.workload import DEFAULT_FILE


@dataclass(frozen=True)
class Least:
    """What the tuned operator must reach; None without a target.

    Attributes:
        to_eager: eager's time divided by its own.
        to_compile: that of `torch.compile` of eager, divided by its own.
        share: its share of the nearer limit of the machine.
    """

    to_eager: float | None = None
    to_compile: float | None = None
    share: float | None = None


LEAST = {
    Problem(batch=1, heads=8, tokens=4096, chunk=64): Least(to_eager=8.0, to_compile=2.5, share=0.65),
    Problem(batch=1, heads=8, tokens=4096, chunk=16): Least(share=0.50),
    Problem(batch=1, heads=8, tokens=512, chunk=1): Least(to_eager=35.0),
    Problem("trellis_step", batch=1, heads=8, tokens=1, chunk=1): Least(to_eager=5.0),
    Problem("trellis_step", batch=16, heads=8, tokens=1, chunk=1): Least(to_eager=15.0),
}
"""The targets on a CPU, at D = M = 64 in float32."""


@dataclass(frozen=True)
class Case:
    """One spec to compare implementations on.

    Attributes:
        name: what the workload calls it.
        least: its targets.
    """

    name: str
    spec: Spec
    least: Least


def cases(device: Device) -> list[Case]:
    """Specs of the workload for `device` without a backward; `tests.benchmarks.subjects.training` has the others."""
    workload = load_workload(DEFAULT_FILE, device.kind)
    targets = LEAST if device.kind == "cpu" else {}
    forward = [named for named in workload if named.spec.problem.direction == "forward"]
    return [Case(named.name, named.spec, targets.get(named.spec.problem, Least())) for named in forward]
