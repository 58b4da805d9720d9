"""How the cost grows with T, B x H, M and D, and what a long decode holds:

    python -m tests.benchmarks.studies.growth.scaling

or `make scaling`, prints the times and exponents and writes docs/scaling.md and docs/scaling.png. Every call is that of
the public operator, with the default schedule; along each axis the sizes are timed in turn, the others held.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

# Read when torch starts its threads, which must not spin while those of a kernel work.
if __name__ == "__main__":
    os.environ.setdefault("GOMP_SPINCOUNT", "200")

import torch

from codegen.device import Device
from codegen.rule import Rule
from codegen.spec import Problem, Spec
from tests.benchmarks.results import machine
from tests.benchmarks.results.comparison import without_records
from tests.benchmarks.results.targets import Target
from tests.benchmarks.studies.growth.decode_memory import Held, decode_in_a_process
from tests.benchmarks.studies.growth.power_law import PowerLaw, fit
from tests.benchmarks.subjects.calls import subject
from tests.benchmarks.turns import sample, take_turns
from trellis_ops import forget
from tuner.measure.cost import cost_of
from tuner.measure.timed import Timed, Timing
from tuner.verify.inputs.trellis import torch_device

DOCS = Path(__file__).parents[4] / "docs"
BASE = Problem(batch=1, heads=8, tokens=1024, dim_k=64, dim_v=64, slots=64, chunk=64)
DECODED = 100_000
LINEAR, TOLERANCE = 1.0, 0.03
MOST_MEMORY_GROWTH = 1.02

_ROUNDS = 1000
_LEAST_ROUNDS = 7


@dataclass(frozen=True)
class Axis:
    """One size that grows while the others are held.

    Attributes:
        name: as the equations call it.
        problems: by its value.
    """

    name: str
    problems: dict[int, Problem]


@dataclass(frozen=True)
class Growth:
    """What an axis gave.

    Attributes:
        timings: by value, samples of the same index taken in the same round.
        law: of the medians.
        fastest: of the fastest samples, which a busy machine disturbs least.
        operations: the law that the number of floating-point operations follows at the same values.
    """

    axis: Axis
    timings: dict[int, Timing]
    law: PowerLaw
    fastest: PowerLaw
    operations: PowerLaw


def axes(cores: int) -> list[Axis]:
    """The four of them. B x H grows in multiples of the cores, as every program is one core's.

    T starts where what a call costs at all, and the first state that it copies, no longer show.
    """
    programs = [cores << power for power in range(6)]
    sizes = (16, 32, 64, 128, 256)
    return [
        Axis("T", {t: replace(BASE, tokens=t) for t in (512, 1024, 2048, 4096, 8192)}),
        Axis("B x H", {n: replace(BASE, tokens=512, batch=max(1, n // 8), heads=min(n, 8)) for n in programs}),
        Axis("M", {m: replace(BASE, slots=m) for m in sizes}),
        Axis("D", {d: replace(BASE, dim_k=d, dim_v=d) for d in sizes}),
    ]


@torch.no_grad()
def grow(axis: Axis, device: Device, seconds: float) -> Growth:
    """Time the public operator at every value of an axis, in turn."""
    samplers = {}
    forget()
    with without_records():
        for value, problem in axis.problems.items():
            bound = subject(Spec(Rule(), problem), torch_device(device))
            bound.operator()
            samplers[str(value)] = functools.partial(sample, Timed(bound.operator, bound.reset), device)
    found = take_turns(samplers, seconds=seconds, rounds=_ROUNDS, least=_LEAST_ROUNDS)
    forget()
    timings = {value: found[str(value)] for value in axis.problems}
    law = fit(list(timings), [timing.seconds for timing in timings.values()])
    fastest = fit(list(timings), [min(timing.samples) for timing in timings.values()])
    flops = [cost_of(Spec(Rule(), problem)).flops for problem in axis.problems.values()]
    return Growth(axis, timings, law, fastest, fit(list(timings), flops))


def targets_of(growths: Sequence[Growth], held: Sequence[Held]) -> list[Target]:
    """What must hold: time linear in T, memory of a decode flat in T."""
    in_tokens = next(growth.law for growth in growths if growth.axis.name == "T")
    first, last = held[0], held[-1]
    span = f"a decode of {last.tokens:,} tokens to one of {first.tokens:,}"
    return [
        Target(
            f"exponent in T, {in_tokens.exponent:.3f}: its distance from {LINEAR:.2f}",
            abs(in_tokens.exponent - LINEAR),
            TOLERANCE,
            False,
            shown="{:.3f}".format,
        ),
        Target(f"bytes of the state, {span}", last.state_bytes / first.state_bytes, 1.0, False),
        Target(
            f"peak of the resident memory, {span}",
            last.peak_bytes / first.peak_bytes,
            MOST_MEMORY_GROWTH,
            False,
            remark=f"{first.peak_bytes / 1e6:.1f} MB, {last.peak_bytes / 1e6:.1f} MB",
            shown="{:.3f}x".format,
        ),
    ]


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    # Imported here: a missing matplotlib should be said before anything is measured, and --help needs none.
    from tests.benchmarks.studies.growth.scaling_page import draw, page, table

    device = machine.here()
    if device.kind == "cpu":
        torch.set_num_threads(device.cores)
    before = machine.load()
    growths = [grow(axis, device, options.seconds) for axis in axes(device.cores if device.kind == "cpu" else 64)]
    held = decode_in_a_process(options.decoded)
    targets = targets_of(growths, held)
    print(table(growths, held, targets, before))
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / "scaling.md").write_text(page(growths, held, targets, before))
    draw(growths, held, options.folder / "scaling.png")
    print(f"written: {options.folder / 'scaling.md'}, {options.folder / 'scaling.png'}")
    return 1 if options.enforce and any(target.reached is False for target in targets) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.studies.growth.scaling",
        description="How the cost grows, as a table and a plot.",
    )
    parser.add_argument("--folder", type=Path, default=DOCS, help="where to write (default: docs)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing for each axis (default: %(default)s)")
    parser.add_argument("--decoded", type=int, default=DECODED, help="tokens of the decode (default: %(default)s)")
    parser.add_argument("--enforce", action="store_true", help="exit with 1 if a target is missed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
