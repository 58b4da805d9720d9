"""Where the time of compiling a kernel goes, in CPU seconds:

    python -m tests.benchmarks.studies.kernels.compile_stages

Each kernel of the default schedules at D = M = 64, stage by stage: its text from the template (the first of a process
reads the templates), the text imported, which parses it, TVM's passes, of these FlattenBuffer, the rest until LLVM has
optimised its own form of it, and the machine code.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codegen.backends.source_module import module_of
from codegen.backends.tvm import compile as tvm
from codegen.backends.tvm import runtime as tvm_runtime
from codegen.device import cpu
from codegen.interruption.collection import without_collection
from codegen.kernels.build import parts
from codegen.render import render
from codegen.rule import Rule
from codegen.schedules.registry import default
from codegen.schedules.schedule import Schedule
from codegen.spec import Problem, Spec

DIRECTIONS = ("forward", "backward")
CHUNKS = (64, 16, 1)
STAGES = ("template", "parsing", "passes", "FlattenBuffer", "to LLVM", "machine code")
_FLATTEN = "tirx.FlattenBuffer"


@dataclass
class Clock:
    """Seconds of the processor, by stage."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        started = time.process_time()
        yield
        self.seconds[stage] += time.process_time() - started


def compiled(kernel: str, part: Spec, schedule: Schedule) -> dict[str, float]:
    """The seconds of each stage of one kernel; TVM's passes and the way to LLVM are one call, and told apart."""
    clock, inside = Clock(), Clock()
    with clock.of("template"):
        source = render(kernel, part, schedule, cpu())
    with clock.of("parsing"):
        module_of(source, tvm.name)
    with clock.of("to LLVM"):
        made = tvm.executable(source, cpu(), [_looking_on(inside)])
    with tempfile.TemporaryDirectory() as folder, clock.of("machine code"):
        made.mod.write_to_file(str(Path(folder) / "kernel.o"), "o")
    passes = {stage: inside.seconds[stage] for stage in ("passes", "FlattenBuffer")}
    return clock.seconds | passes | {"to LLVM": clock.seconds["to LLVM"] - passes["passes"]}


def _looking_on(clock: Clock) -> Any:
    from tvm.ir.instrument import pass_instrument

    class PassClock:
        """Passes hold passes: what the outermost took is what all took."""

        def __init__(self) -> None:
            self.started: list[float] = []

        def run_before_pass(self, module: Any, info: Any) -> None:
            self.started.append(time.process_time())

        def run_after_pass(self, module: Any, info: Any) -> None:
            seconds = time.process_time() - self.started.pop()
            clock.seconds["passes"] += 0.0 if self.started else seconds
            clock.seconds["FlattenBuffer"] += seconds if info.name == _FLATTEN else 0.0

    return pass_instrument(PassClock)()


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.studies.kernels.compile_stages", description=__doc__
    )
    parser.add_argument("--chunk", type=int, action="append", help="instead of 64, 16 and 1 (repeatable)")
    chunks = parser.parse_args(arguments).chunk or CHUNKS
    # First torch, which TVM would import, then TVM's compiler: neither is a stage of a kernel.
    importlib.import_module("trellis_ops")
    tvm_runtime.load()
    with without_collection():
        importlib.import_module("tvm")
    print(f"D = M = 64, float32, default schedules, {cpu().key()}\n")
    print(f"{'kernel':34}" + "".join(f"  {column}" for column in (*STAGES, " sum")))
    for direction, chunk in itertools.product(DIRECTIONS, dict.fromkeys(chunks)):
        # More than two tiles: with C = 1 a shorter prompt goes token by token, in another kernel.
        spec = Spec(Rule(), Problem(batch=1, tokens=4096, heads=8, chunk=chunk, direction=direction))
        schedule = default("tvm", spec, cpu())
        for kernel, part in parts(spec, schedule):
            seconds = compiled(kernel, part, schedule.of_kernel(kernel))
            seconds[" sum"] = sum(seconds.values()) - seconds["FlattenBuffer"]
            cells = "".join(f"{each:{len(column) + 2}.2f}" for column, each in seconds.items())
            print(f"{f'{direction}, C = {chunk}, {kernel}':34}{cells}", flush=True)


if __name__ == "__main__":
    main()
