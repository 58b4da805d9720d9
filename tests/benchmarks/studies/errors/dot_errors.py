"""What each precision of Triton's dots costs in accuracy: python -m tests.benchmarks.studies.errors.dot_errors.

No GPU is needed: Triton's interpreter runs the kernels, and the operands of every dot are rounded as a GPU rounds them.
Errors are those of the tuner's check: ||a - b|| / ||b|| against the oracle in float64, on its ragged inputs, or with
--hard on its hard ones, for bfloat16 and several sizes.
"""

from __future__ import annotations

import os

if __name__ == "__main__":  # Read when Triton is imported; a process that imports this module decides by itself.
    os.environ["TRITON_INTERPRET"] = "1"

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from codegen.device import cpu
from codegen.kernels.build import build
from codegen.rule import Rule
from codegen.schedules.registry import default
from codegen.spec import DTYPES, Problem, Spec
from tuner.verify.check import OF_GRADIENTS, SEED, TOLERANCE, check_inputs, compare, expected
from tuner.verify.inputs.adversarial import CASES, adversarial_inputs
from tuner.verify.launch import bind
from tuner.verify.oracle import oracle

Values = npt.NDArray[np.float32]
RULES = (Rule(), Rule("identity"))
SIZES = ((64, 64), (128, 64), (64, 128))
"""Slots and dimensions of a head."""

_HIDDEN_BITS = {"tf32": 13, "bf16": 16}


def rounded(values: Values, kind: str) -> Values:
    """Float32 numbers rounded to the nearest, ties to even, with as many bits as `kind` keeps.

    >>> float(rounded(np.array([1 + 2**-9], np.float32), "bf16")[0])
    1.0
    """
    hidden = _HIDDEN_BITS[kind]
    bits = np.ascontiguousarray(values).view(np.uint32)
    half = ((bits >> hidden) & 1) + np.uint32((1 << (hidden - 1)) - 1)
    return ((bits + half) >> hidden << hidden).view(np.float32)


def product(a: Values, b: Values, precision: str) -> Values:
    """a b as a GPU computes it with operands of that precision, sums in float32."""
    if precision == "ieee":
        return a @ b
    kind = precision.removesuffix("x3")
    high_a, high_b = rounded(a, kind), rounded(b, kind)
    if kind == precision:
        return high_a @ high_b
    low_a, low_b = rounded(a - high_a, kind), rounded(b - high_b, kind)
    return low_a @ high_b + high_a @ low_b + high_a @ high_b


def dot_of(precision: str) -> Callable[..., Any]:
    """What the interpreter is to do for `tl.dot`."""

    def create_dot(_: Any, a: Any, b: Any, d: Any, *__: Any) -> Any:
        return TensorHandle(product(a.data, b.data, precision) + d.data, d.dtype.scalar)

    return create_dot


def worst(spec: Spec, precision: str) -> tuple[str, float, float]:
    """What is furthest off as a share of what is allowed, its error, and what is allowed; of a backward a gradient."""
    schedule = replace(default("triton", spec, cpu()), dot_precision="tf32x3")
    launch = bind(build(spec, schedule, cpu()), check_inputs(spec, cpu()))
    with mock.patch.object(InterpreterBuilder, "create_dot", dot_of(precision)):
        outputs = launch.outputs_of_run()
    tolerance = TOLERANCE[spec.problem.dtype]
    allowed = {name: tolerance * (OF_GRADIENTS if name.startswith("d") else 1.0) for name in outputs}
    errors = compare(outputs, expected(spec), tolerance).errors
    if spec.problem.direction != "forward":
        errors = {name: error for name, error in errors.items() if name.startswith("d")}
    name = max(errors, key=lambda each: errors[each] / allowed[each])
    return name, errors[name], allowed[name]


def hard_errors(spec: Spec, precision: str) -> Iterator[tuple[str, float]]:
    """The name of each hard input, and the error of the output that is furthest off on it."""
    schedule = replace(default("triton", spec, cpu()), dot_precision="tf32x3")
    program, lengths = build(spec, schedule, cpu()), (spec.problem.chunk + 3, 5)
    for case in CASES:
        inputs = adversarial_inputs(case, spec, lengths, cpu(), SEED)
        with mock.patch.object(InterpreterBuilder, "create_dot", dot_of(precision)):
            outputs = bind(program, inputs).outputs_of_run()
        errors = compare(outputs, oracle(spec, inputs), TOLERANCE[spec.problem.dtype]).errors
        yield case.name, max(errors.values())


def print_hard() -> None:
    """One row per size and precision."""
    print(f"| slots | dimensions | dots | {' | '.join(case.name for case in CASES)} |")
    print("|---|---|---|" + "---|" * len(CASES))
    for slots, dim in SIZES:
        sizes = {"slots": slots, "dim_k": dim, "dim_v": dim, "batch": 1, "tokens": 1, "heads": 2}
        spec = Spec(Rule(), Problem(dtype="bfloat16", **sizes))
        for precision in ("bf16x3", "tf32", "bf16"):
            cells = (f"{error:.1e}" for _, error in hard_errors(spec, precision))
            print(f"| {slots} | {dim} | {precision} | {' | '.join(cells)} |", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """One row per write map, type of the inputs, direction and precision; or the rows of --hard."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.studies.errors.dot_errors", description=__doc__)
    parser.add_argument("--hard", action="store_true", help="on the hard inputs of the check instead")
    if parser.parse_args(arguments).hard:
        print_hard()
        return
    print("| phi | inputs | direction | dots | furthest off | error | allowed |")
    print("|---|---|---|---|---|---|---|")
    for rule in RULES:
        for dtype in DTYPES:
            for direction in ("forward", "backward"):
                spec = Spec(rule, Problem(dtype=dtype, direction=direction))
                for precision in ("ieee", "tf32x3", "bf16x3", "tf32", "bf16"):
                    name, error, allowed = worst(spec, precision)
                    cells = (rule.phi, dtype, direction, precision, name, f"{error:.1e}", f"{allowed:.0e}")
                    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
