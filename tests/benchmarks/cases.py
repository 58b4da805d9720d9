"""What is compared: the specs that `make tune` tunes, and what the tuned operator must reach on some of them."""

from __future__ import annotations

from dataclasses import dataclass

from codegen.device import Device
from codegen.spec import Problem, Spec
from tuner.workload import DEFAULT_FILE, load_workload

LEAST_RATIOS = {
    Problem(batch=1, heads=8, tokens=4096, chunk=64): 5.0,
    Problem(batch=1, heads=8, tokens=512, chunk=1): 20.0,
    Problem("trellis_step", batch=16, heads=8, tokens=1, chunk=1): 8.0,
}
"""How many times as fast as eager the tuned operator must be on a CPU, at D = M = 64 in float32."""


@dataclass(frozen=True)
class Case:
    """One spec to compare implementations on.

    Attributes:
        name: what the workload calls it.
        least_ratio: the target: eager's time divided by the tuned operator's; None without one.
    """

    name: str
    spec: Spec
    least_ratio: float | None


def cases(device: Device) -> list[Case]:
    """The specs of the workload for `device`."""
    workload = load_workload(DEFAULT_FILE, device.kind)
    targets = LEAST_RATIOS if device.kind == "cpu" else {}
    return [Case(named.name, named.spec, targets.get(named.spec.problem)) for named in workload]
