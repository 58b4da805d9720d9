"""Where the time of a prefill goes:

    python -m tests.benchmarks.studies.kernels.breakdown --chunk 64

times the fused kernel cut after each statement of its loop over tiles, all in turn, and prints the differences. A
difference holds what a statement costs beyond what the processor hides behind its neighbours, so a stage that overlaps
with the next looks cheaper than it would alone. Below stand the operations of the products, as the equations count them
and as tiles of the schedule's length leave them, with the time that a large matrix product would take for as many.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

# Read when torch starts its threads, which must not spin while those of a kernel work.
if __name__ == "__main__":
    os.environ.setdefault("GOMP_SPINCOUNT", "200")

import torch

from codegen.backends.tvm import compile as tvm
from codegen.device import Device, cpu
from codegen.kernels.operator import CompiledOperator
from codegen.render import render
from codegen.rule import MAPS, Rule
from codegen.schedules.legality import require_legal
from codegen.schedules.registry import default, from_settings
from codegen.schedules.schedule import Schedule
from codegen.spec import DTYPES, Problem, Spec
from tests.benchmarks.studies.kernels.kernel_parts import Part, parts_of
from tuner.duration import duration
from tuner.measure.ceiling import ceiling_again
from tuner.measure.cost import cost_of
from tuner.measure.measure import measure
from tuner.measure.timed import Timed
from tuner.verify.inputs.trellis import timing_inputs
from tuner.verify.launch import bind

_ROUNDS = 1000


@dataclass(frozen=True)
class Piece:
    """What one statement takes.

    Attributes:
        seconds: by which the kernel that ends with it is slower than the one that ends before it.
    """

    label: str
    kind: str
    seconds: float


def pieces_of(parts: Sequence[Part], seconds: Sequence[float]) -> list[Piece]:
    """The differences of the times of kernels cut after one statement more each; their sum is the last time."""
    before = (0.0, *seconds)
    return [Piece(part.label, part.kind, s - b) for part, s, b in zip(parts, seconds, before, strict=False)]


@torch.no_grad()
def time_parts(parts: Sequence[Part], spec: Spec, schedule: Schedule, device: Device, seconds: float) -> list[float]:
    """The fastest sample of each kernel, taken in turn: what disturbs it can only slow it."""
    inputs = timing_inputs(spec, device)
    calls = {}
    for number, part in enumerate(parts):
        kernel = tvm.compile(part.source, spec, schedule, device)
        launch = bind(CompiledOperator(spec, schedule, device, (kernel,)), inputs)
        calls[str(number)] = Timed(launch.run, launch.reset_states)
    timings = measure(calls, device, seconds=seconds, rounds=_ROUNDS, least=7)
    return [min(timing.samples) for timing in timings.values()]


def lines_of(pieces: Sequence[Piece]) -> Iterable[str]:
    """The table: each statement, then their sums by kind."""
    total = sum(piece.seconds for piece in pieces)

    def line(label: str, kind: str, seconds: float) -> str:
        return f"{label:<30}{kind:<19}{duration(max(seconds, 0.0)):>9}{seconds / total:>7.1%}"

    yield f"{'statement':<30}{'kind':<19}{'time':>9}{'share':>7}"
    yield from (line(piece.label, piece.kind, piece.seconds) for piece in pieces)
    yield ""
    for kind in dict.fromkeys(piece.kind for piece in pieces):
        yield line("", kind, sum(piece.seconds for piece in pieces if piece.kind == kind))
    yield line("", "all", total)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    options = _parser().parse_args(arguments)
    device = cpu()
    torch.set_num_threads(device.cores)
    problem = Problem(
        batch=1,
        tokens=options.tokens,
        heads=options.heads,
        dim_k=options.dim,
        dim_v=options.dim,
        slots=options.slots,
        chunk=options.chunk,
        dtype=options.dtype,
    )
    spec = Spec(Rule(phi=options.phi, link=options.link), problem)
    schedule = _schedule(spec, device, options.set)
    parts = parts_of(render("trellis_fused", spec, schedule, device))
    print(f"{spec.key()}\n{schedule.key()}\n{device.key()}\n", flush=True)
    before = ceiling_again(device, problem.dtype, 0)
    pieces = pieces_of(parts, time_parts(parts, spec, schedule, device, options.seconds))
    ceiling = before.or_better(ceiling_again(device, problem.dtype, 0))
    print("\n".join(lines_of(pieces)))
    tiled = replace(spec, problem=replace(problem, chunk=schedule.tile_tokens))
    print()
    for label, flops in (("the chunk form", cost_of(spec).flops), ("tiles as long as these", cost_of(tiled).flops)):
        seconds = duration(flops / ceiling.flops)
        print(f"{label} has {flops / 1e9:.2f} GFLOP, {seconds} at {ceiling.flops / 1e9:.0f} GFLOP/s")


def _schedule(spec: Spec, device: Device, assignments: Sequence[str]) -> Schedule:
    settings: dict[str, object] = {**default("tvm", spec, device).settings(), "variant": "fused"}
    for assignment in assignments:
        name, _, value = assignment.partition("=")
        settings[name] = int(value) if value.isdecimal() else value
    schedule = from_settings("tvm", settings)
    require_legal(spec, schedule, device)
    return schedule


def _parser() -> argparse.ArgumentParser:
    problem, rule = Problem(), Rule()
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.studies.kernels.breakdown",
        description="Where the time of a prefill kernel goes.",
    )
    parser.add_argument("--tokens", type=int, default=problem.tokens, help="T (default: %(default)s)")
    parser.add_argument("--heads", type=int, default=problem.heads, help="H (default: %(default)s)")
    parser.add_argument("--dim", type=int, default=problem.dim_k, help="D (default: %(default)s)")
    parser.add_argument("--slots", type=int, default=problem.slots, help="M (default: %(default)s)")
    parser.add_argument("--chunk", type=int, default=problem.chunk, help="C (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default=problem.dtype, help="(default: %(default)s)")
    parser.add_argument("--phi", choices=MAPS, default=rule.phi, help="(default: %(default)s)")
    parser.add_argument("--link", choices=MAPS, default=rule.link, help="(default: %(default)s)")
    described = "a field of the schedule, instead of its default; may be repeated"
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=described)
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing, about (default: %(default)s)")
    return parser


if __name__ == "__main__":
    main()
