"""Every named rule beside its eager loop: forward, a decode step, a backward, and the errors against the oracle.

    python -m tests.benchmarks.studies.rules

Every call is that of the public operator, with the winner that is known here or the default schedule; it and the eager
walk are timed in turn, on the same inputs. docs/rules-speed.md explains the columns.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

# Read when torch starts its threads, which must not spin while those of a kernel work.
if __name__ == "__main__":
    os.environ.setdefault("GOMP_SPINCOUNT", "200")

import torch

from codegen.device import Device
from codegen.errors import TrellisError
from codegen.kernels.build import build
from codegen.rules import NAMED
from codegen.schedules.registry import default
from codegen.spec import CHUNKED_STEP, Problem, Spec
from tests.benchmarks.results import machine
from tests.benchmarks.results.targets import Target
from tests.benchmarks.subjects.rule_calls import RuleSubject, rule_subject, training_step
from tests.benchmarks.turns import ratio, sample, take_turns
from trellis_ops.specs.workload import load_workload
from tuner.duration import duration
from tuner.measure.ceiling import ceiling_of
from tuner.measure.cost import cost_of
from tuner.measure.timed import Timed, Timing
from tuner.verify.check import TOLERANCE, compare
from tuner.verify.inputs.trellis import make_inputs
from tuner.verify.launch import bind
from tuner.verify.oracle import oracle
from tuner.workload import RULES_FILE

LEAST = {"forward": 20.0, "decode": 5.0}
"""How many times as fast as its eager loop a rule must be, of those that have a target."""

_LEAST_ROUNDS = 3
_COLUMNS = ("forward", "decode", "backward")
_ERRORS = ("outputs", "gradients")


@dataclass(frozen=True)
class Beside:
    """An operator beside its eager walk.

    Attributes:
        kernel, eager: samples of the same index were taken in the same round.
        share: of the nearer limit of the machine, as `tuner.measure.ceiling` measures it.
    """

    kernel: Timing
    eager: Timing
    share: float

    @property
    def ratio(self) -> float:
        """How many times as fast as eager: the median over the rounds."""
        return ratio(self.eager, self.kernel)


@dataclass(frozen=True)
class Row:
    """What one rule gave.

    Attributes:
        rule: its name.
        chunk: C of forward and backward.
        timed: by column; none where a call could not run.
        errors: largest relative error against the oracle, of outputs and states, and of gradients.
        problem: why something is missing, empty for nothing.
    """

    rule: str
    chunk: int
    timed: dict[str, Beside]
    errors: dict[str, float]
    problem: str = ""

    def targets(self) -> list[Target]:
        """What its times must reach; one that was not measured is missed if a call failed."""
        found = {name: self.timed[name].ratio if name in self.timed else None for name in LEAST}
        missing = 0.0 if self.problem else None
        return [
            Target(f"{self.rule}, {name}", missing if found[name] is None else found[name], least, True, "eager")
            for name, least in LEAST.items()
        ]


@dataclass(frozen=True)
class Sizes:
    """What is timed.

    Attributes:
        tokens, trained: T of the forward and of the backward.
        checked: T of the comparison with the oracle.
        heads, dim: H, and D_k = D_v = M.
        seconds, rounds: of each pair, at most; `_LEAST_ROUNDS` at least.
    """

    tokens: int
    trained: int
    checked: int
    heads: int
    dim: int
    seconds: float
    rounds: int


def spec_of(name: str, chunk: int, sizes: Sizes, column: str) -> Spec:
    """The spec of a column, of B = 1."""
    tokens = {"forward": sizes.tokens, "decode": 1, "backward": sizes.trained}[column]
    problem = Problem(
        "memory_attention", 1, tokens, sizes.heads, sizes.dim, sizes.dim, sizes.dim, 1 if column == "decode" else chunk
    )
    if column == "decode":
        problem = replace(problem, operator="memory_step" if chunk == 1 else CHUNKED_STEP)
    if column == "backward":
        problem = replace(problem, direction="backward")
    return Spec(NAMED[name].rule, problem)


def beside(spec: Spec, device: Device, sizes: Sizes) -> Beside:
    """Time the public operator and the eager walk of `spec` in turn."""
    problem = spec.problem
    trains = problem.direction != "forward"
    inputs = make_inputs(spec, (problem.tokens,) * problem.batch, device)
    bound = rule_subject(spec, inputs, gradients=trains)
    kernel, walk = _calls(bound, trains)
    kernel()
    samplers = {
        "kernel": functools.partial(sample, Timed(kernel, bound.reset), device),
        # One run of a loop over thousands of tokens is as long as any warm-up.
        "eager": functools.partial(sample, Timed(walk, bound.reset), device) if problem.tokens == 1 else once(walk),
    }
    found = take_turns(samplers, seconds=sizes.seconds, rounds=sizes.rounds, least=_LEAST_ROUNDS)
    cost = cost_of(spec)
    share = ceiling_of(device, problem.dtype, cost.bytes).share(cost, found["kernel"].seconds)
    return Beside(found["kernel"], found["eager"], share)


def _calls(bound: RuleSubject, trains: bool) -> tuple[Callable[[], object], Callable[[], object]]:
    if trains:
        return training_step(bound, bound.operator), training_step(bound, bound.eager)
    return bound.operator, bound.eager


def once(run: Callable[[], object]) -> Callable[[], float]:
    """Takes the time of one call as a sample."""

    def taken() -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    return taken


def errors_of(name: str, chunk: int, sizes: Sizes, device: Device) -> dict[str, float]:
    """The largest relative errors of the default schedule's outputs and gradients, on two packed sequences."""
    spec = spec_of(name, chunk, sizes, "backward")
    spec = replace(spec, problem=replace(spec.problem, heads=1))
    inputs = make_inputs(spec, (sizes.checked, sizes.checked // 2 + 1), device)
    backend = "tvm" if device.kind == "cpu" else "triton"
    launch = bind(build(spec, default(backend, spec, device), device), inputs)
    on_cpu = replace(inputs, tensors={each: x.cpu() for each, x in inputs.tensors.items()})
    found = compare(launch.outputs_of_run(), oracle(spec, on_cpu), TOLERANCE[spec.problem.dtype]).errors
    gradients = {each: error for each, error in found.items() if each.startswith("d")}
    outputs = {each: error for each, error in found.items() if each not in gradients}
    return {"outputs": max(outputs.values()), "gradients": max(gradients.values())}


def row_of(name: str, chunk: int, sizes: Sizes, device: Device, columns: tuple[str, ...] = _COLUMNS) -> Row:
    """Time and check one rule; what cannot run is said in its row."""
    timed: dict[str, Beside] = {}
    errors: dict[str, float] = {}
    problems = []
    for column in columns:
        try:
            with torch.no_grad():
                timed[column] = beside(spec_of(name, chunk, sizes, column), device, sizes)
        except TrellisError as error:
            problems.append(f"{column}: {error}")
    try:
        errors = errors_of(name, chunk, sizes, device)
    except TrellisError as error:
        problems.append(f"errors: {error}")
    return Row(name, chunk, timed, errors, "; ".join(problems))


def chunks() -> dict[str, int]:
    """C of every named rule, as the workload of rules has it; 1 of those that share the record of another."""
    listed = {each.name: each.spec.problem.chunk for each in load_workload(RULES_FILE, "cpu")}
    return {name: listed.get(name, 1) for name in NAMED}


def head_line() -> str:
    """The names of the columns."""
    timed = "".join(f"{name:>10}{'eager':>9}{'ratio':>7}{'share':>6}" for name in _COLUMNS)
    return f"{'rule':<15}{'C':>3}{timed}{'error':>9}{'of grad.':>9}"


def line_of(row: Row) -> str:
    """A row of the table."""
    cells = []
    for name in _COLUMNS:
        if name not in row.timed:
            cells.append(f"{'-':>10}{'-':>9}{'-':>7}{'-':>6}")
            continue
        found = row.timed[name]
        kernel, walk = duration(found.kernel.seconds), duration(found.eager.seconds)
        cells.append(f"{kernel:>10}{walk:>9}{found.ratio:>6.0f}x{found.share:>6.0%}")
    errors = "".join(f"{row.errors[kind]:>9.0e}" if kind in row.errors else f"{'-':>9}" for kind in _ERRORS)
    problem = f"  {row.problem}" if row.problem else ""
    return f"{row.rule:<15}{row.chunk:>3}{''.join(cells)}{errors}{problem}"


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    device = machine.here()
    if device.kind == "cpu":
        torch.set_num_threads(device.cores)
    sizes = sizes_of(options)
    rows = []
    for line in _head(device, sizes):
        print(line)
    for name, chunk in chunks().items():
        if name in options.rules:
            rows.append(row_of(name, chunk, sizes, device, tuple(options.columns)))
            print(line_of(rows[-1]), flush=True)
    targets = [target for row in rows for target in row.targets()]
    missed = [target for target in targets if target.reached is False]
    print("\n".join(map(str, missed)) or "every target that was measured is reached")
    failed = any(row.problem for row in rows)
    return 1 if failed or (options.enforce and missed) else 0


def _head(device: Device, sizes: Sizes) -> Iterator[str]:
    yield f"{device.key()}, float32, B1 H{sizes.heads} D = M = {sizes.dim}; forward of T{sizes.tokens}, backward of"
    yield f"T{sizes.trained} with its forward, errors of T{sizes.checked}; load before: {machine.load()}"
    yield ", ".join(f"{name} {value}" for name, value in (machine.versions() | machine.threads()).items())
    yield ""
    yield head_line()


def add_options(parser: argparse.ArgumentParser, checked: int) -> None:
    """The options of a study of named rules: which, and the fields of `Sizes`; `checked` is the default of one."""
    parser.add_argument(
        "--rules", type=rules_of_text, default=list(NAMED), help="names with commas between (default: all)"
    )
    parser.add_argument("--tokens", type=int, default=4096, help="T of the forward (default: %(default)s)")
    parser.add_argument("--trained", type=int, default=256, help="T of the backward (default: %(default)s)")
    parser.add_argument("--checked", type=int, default=checked, help="T against the oracle (default: %(default)s)")
    parser.add_argument("--heads", type=int, default=8, help="H (default: %(default)s)")
    parser.add_argument("--dim", type=int, default=64, help="D_k = D_v = M (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each timing (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=50, help="of each timing at most (default: %(default)s)")


def sizes_of(options: argparse.Namespace) -> Sizes:
    """What `add_options` was given."""
    return Sizes(
        options.tokens, options.trained, options.checked, options.heads, options.dim, options.seconds, options.rounds
    )


def rules_of_text(text: str) -> list[str]:
    """The rules of an option, with commas between.

    Raises:
        argparse.ArgumentTypeError: a rule that has no name.
    """
    names = text.split(",")
    for name in names:
        if name not in NAMED:
            raise argparse.ArgumentTypeError(f"{name!r} is no named rule; there are {', '.join(NAMED)}")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.studies.rules", description="Every named rule beside its eager loop."
    )
    add_options(parser, checked=37)
    parser.add_argument("--columns", nargs="+", choices=_COLUMNS, default=list(_COLUMNS), help="what is timed")
    parser.add_argument("--enforce", action="store_true", help="exit with 1 if a target is missed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
