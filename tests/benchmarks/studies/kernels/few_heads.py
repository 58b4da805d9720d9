"""What two threads can gain where there is one head: `python -m tests.benchmarks.studies.kernels.few_heads`.

Variant `pair` has the keys of a head on one thread and its values on another, a segment behind. Each half is timed
alone, on one thread; what the schedule would take if both never waited for anything but each other is the bound. The
values then read an `o` that no keys wrote, which takes as long: no instruction of a kernel depends on a number.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace

# Read when torch starts its threads, which must not spin while those of a kernel work.
if __name__ == "__main__":
    os.environ.setdefault("GOMP_SPINCOUNT", "200")

import torch

from codegen.backends.tvm import compile as tvm
from codegen.device import Device, cpu
from codegen.kernels.build import build
from codegen.kernels.operator import CompiledOperator
from codegen.render import render
from codegen.rule import Rule
from codegen.schedules.registry import default
from codegen.schedules.schedule import Schedule
from codegen.spec import Problem, Spec
from tests.benchmarks.turns import ratio, sample, take_turns
from tuner.duration import duration
from tuner.measure.timed import Timed, Timing
from tuner.verify.inputs.trellis import timing_inputs
from tuner.verify.launch import bind

CHUNKS = (64, 16)
_ALL_PROGRAMS = "T.serial(programs * worker // THREADS, programs * (worker + 1) // THREADS)"
_HALVES = {"keys": "T.serial(0, programs // 2)", "values": "T.serial(programs // 2, programs)"}


def half_of_pair(half: str, spec: Spec, schedule: Schedule, device: Device) -> CompiledOperator:
    """Variant `pair`, on one thread, without the programs of the other memory.

    Raises:
        ValueError: the template deals its programs in another way than this module knows.
    """
    source = render("trellis_pair", spec, schedule, device)
    if source.text.count(_ALL_PROGRAMS) != 1:
        raise ValueError(f"expected one loop {_ALL_PROGRAMS} in {source.path}")
    text = source.text.replace(_ALL_PROGRAMS, _HALVES[half])
    digest = hashlib.sha256(text.encode()).hexdigest()
    path = source.path.with_name(f"trellis_pair_{half}_{digest[:16]}.py")
    path.write_text(text)
    part = replace(source, text=text, path=path, digest=digest)
    return CompiledOperator(spec, schedule, device, (tvm.compile(part, spec, schedule, device),))


def programs_of(spec: Spec, device: Device) -> dict[str, CompiledOperator]:
    """What is timed, by name."""
    usual = default("tvm", spec, device)
    built = {
        f"{variant}, {threads} thread{'s' if threads > 1 else ''}": build(
            spec, replace(usual, variant=variant, threads=threads), device
        )
        for variant, threads in (("fused", 1), ("pair", 1), ("split", 1), ("pair", 2), ("split", 2))
    }
    one_thread = replace(usual, variant="pair", threads=1)
    return built | {half: half_of_pair(half, spec, one_thread, device) for half in _HALVES}


def segments_of(spec: Spec, device: Device) -> int:
    """Into how many segments `pair` cuts the sequence: what its kernel is called with."""
    calls: list[tuple[object, ...]] = []
    schedule = replace(default("tvm", spec, device), variant="pair")
    bind(
        CompiledOperator(spec, schedule, device, (lambda *given: calls.append(given),)), timing_inputs(spec, device)
    ).run()
    return int(calls[0][1])


@torch.no_grad()
def timed(spec: Spec, device: Device, seconds: float) -> dict[str, Timing]:
    """Samples of each program in turn."""
    inputs = timing_inputs(spec, device)
    samplers: dict[str, Callable[[], float]] = {}
    for name, program in programs_of(spec, device).items():
        launch = bind(program, inputs)
        samplers[name] = functools.partial(sample, Timed(launch.run, launch.reset_states), device)
    return take_turns(samplers, seconds=seconds, rounds=200, least=7)


def bound(keys: float, values: float, segments: int) -> float:
    """Seconds of `pair` on two threads that wait for each other only.

    Of the segments + 1 steps the first has keys only and the last values only; each other takes as long as the longer.
    """
    return (keys + values + (segments - 1) * max(keys, values)) / segments


def lines_of(timings: dict[str, Timing], segments: int) -> Iterator[str]:
    """The table, each time with how many times as fast as one thread it is."""
    alone = timings["fused, 1 thread"]
    for name, timing in timings.items():
        yield f"{name:<18}{duration(timing.seconds):>9}{ratio(alone, timing):>7.2f}"
    keys, values = (timings[half].seconds for half in _HALVES)
    least = bound(keys, values, segments)
    yield f"{'bound of pair':<18}{duration(least):>9}{alone.seconds / least:>7.2f}   in {segments} segments"


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.studies.kernels.few_heads", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="of timing for each C (default: %(default)s)")
    options = parser.parse_args(arguments)
    device = cpu()
    torch.set_num_threads(min(2, device.cores))
    print(f"B1 H1 T8192, float32, D = M = 64, {device.key()}")
    for chunk in CHUNKS:
        spec = Spec(Rule(), Problem(batch=1, heads=1, tokens=8192, chunk=chunk))
        print(f"\nC = {chunk}")
        print("\n".join(lines_of(timed(spec, device, options.seconds), segments_of(spec, device))))


if __name__ == "__main__":
    main()
