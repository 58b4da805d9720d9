"""The forward's share of the machine's limit at other sizes of head:

python -m tests.benchmarks.studies.kernels.sizes
"""

from __future__ import annotations

import argparse

import torch

from codegen.device import Device, cpu
from codegen.kernels.build import build
from codegen.rule import Rule
from codegen.schedules.registry import default
from codegen.spec import Problem, Spec
from tests.benchmarks.turns import sample
from tuner.duration import duration
from tuner.measure.ceiling import ceiling_again
from tuner.measure.cost import cost_of
from tuner.measure.timed import Timed
from tuner.verify.inputs.trellis import timing_inputs
from tuner.verify.launch import bind

SIZES = (16, 24, 32, 48, 64, 96, 128, 192, 256)
CHUNKS = (64, 16)
_SAMPLES = 9


def measured(size: int, chunk: int, device: Device) -> tuple[float, float]:
    """Seconds of the default schedule at D = M = `size`, and its share of the limit measured around it."""
    spec = Spec(Rule(), Problem(batch=1, heads=8, tokens=2048, dim_k=size, dim_v=size, slots=size, chunk=chunk))
    launch = bind(build(spec, default("tvm", spec, device), device), timing_inputs(spec, device))
    cost = cost_of(spec)
    ceiling = ceiling_again(device, spec.problem.dtype, cost.bytes)
    times = sorted(sample(Timed(launch.run, launch.reset_states), device) for _ in range(_SAMPLES))
    ceiling = ceiling.or_better(ceiling_again(device, spec.problem.dtype, cost.bytes))
    median = times[_SAMPLES // 2]
    return median, ceiling.share(cost, median)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    argparse.ArgumentParser(prog="python -m tests.benchmarks.studies.kernels.sizes", description=__doc__).parse_args(
        arguments
    )
    device = cpu()
    torch.set_num_threads(device.cores)
    print(f"B1 H8 T2048, float32, default schedules, {device.key()}\n")
    print("  D = M" + "".join(f"{f'C = {chunk}':>22}" for chunk in CHUNKS))
    for size in SIZES:
        cells = [measured(size, chunk, device) for chunk in CHUNKS]
        print(f"{size:7}" + "".join(f"{f'{duration(seconds)}  {share:.0%}':>22}" for seconds, share in cells))


if __name__ == "__main__":
    main()
