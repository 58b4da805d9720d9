"""Worst errors of the gradients of `trellis_attention`, by map, chunk size and meaning of the gradient.

    python -m tests.benchmarks.studies.errors.gradient_errors eager tvm

prints a table of ||a - b|| / ||b|| against autograd of the oracle in float64, from the same float32 inputs. Of each of
ten draws of inputs the worst of the eight gradients counts: a cell has the mean over the draws, then the worst of all
and whose it is. The mean is what to compare, since one draw is mostly luck. `eager` is the reverse pass of
`trellis_ops.eager.backward` in float64, `tvm` and `triton` are the default schedules in float32; Triton's kernels are
interpreted. The first run compiles thirty programs of TVM, which takes some minutes; later ones find them in the cache.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
from collections import defaultdict
from collections.abc import Callable

from torch import Tensor, float64

from codegen.device import cpu
from codegen.kernels.build import build
from codegen.kernels.operator import CompiledOperator
from codegen.rule import MAPS, Rule
from codegen.schedules.registry import default
from codegen.spec import Spec
from tests.support.cases.backward import DIRECTIONS, NAMES, backward_spec, cotangents, expected_backward, run_backward
from tests.support.cases.kernels import Case
from tests.support.inputs import Inputs
from tests.support.relative_error import relative_error
from trellis_ops.eager import backward

CHUNKS = (1, 16, 64)
DRAWS = 10
LABELS = {"eager": "eager, float64", "tvm": "TVM, float32", "triton": "Triton interpreted, float32"}

Gradients = Callable[[Case, Inputs, str], dict[str, Tensor]]
"""The gradients of a case by the names of its inputs."""


def case_of(name: str, chunk: int) -> Case:
    """One map in all three places, over a whole chunk of 64 and a part of the next one."""
    rule = Rule(name, link=name, out=name, phi_eps=1e-2, step_size="token")
    return Case(chunk=chunk, lengths=(90,), rule=rule)


def by_eager(case: Case, inputs: Inputs, outer_gradient: str) -> dict[str, Tensor]:
    """The gradients by `trellis_ops.eager.backward`, in float64."""
    dy, ds_k, ds_v = (x.double() for x in cotangents(case, inputs).values())
    exact = inputs.to(float64)
    tokens, states = backward.attention(
        *exact.args,
        dy,
        (ds_k, ds_v),
        rule=case.rule,
        chunk_size=case.chunk,
        initial_state=exact.initial_state,
        outer_gradient=outer_gradient,
    )
    return dict(zip(NAMES, (*tokens, *states), strict=True))


def by_kernels(backend: str) -> Gradients:
    """The gradients by the default schedule of a backend."""

    def program(spec: Spec) -> CompiledOperator:
        return build(spec, default(backend, spec, cpu()), cpu())

    def gradients(case: Case, inputs: Inputs, outer_gradient: str) -> dict[str, Tensor]:
        return run_backward(program(backward_spec(case, outer_gradient)), case, inputs)

    return gradients


def worst(found: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, str]:
    """The largest relative error, and the gradient that has it."""
    return max((relative_error(found[name], expected[name]), name) for name in NAMES)


def rows(implementations: list[str], draws: int) -> None:
    """Print a row per map and meaning of the gradient, a column per implementation and chunk size."""
    computed = {name: by_eager if name == "eager" else by_kernels(name) for name in implementations}
    heads = [f"{LABELS[name]}, C = {chunk}" for name in implementations for chunk in CHUNKS]
    print(f"| map | gradient | {' | '.join(heads)} |")
    print("|---" * (2 + len(heads)) + "|")
    for name in MAPS:
        for outer_gradient in DIRECTIONS:
            cells: dict[tuple[str, int], list[tuple[float, str]]] = defaultdict(list)
            for chunk, seed in itertools.product(CHUNKS, range(draws)):
                case = case_of(name, chunk)
                inputs = case.inputs(seed=seed)
                expected = expected_backward(case, inputs, outer_gradient)
                for implementation, gradients in computed.items():
                    cells[implementation, chunk].append(worst(gradients(case, inputs, outer_gradient), expected))
            texts = [text_of(cells[implementation, chunk]) for implementation in implementations for chunk in CHUNKS]
            print(f"| {name} | {outer_gradient} | {' | '.join(texts)} |", flush=True)


def text_of(found: list[tuple[float, str]]) -> str:
    """The mean of the worst errors of some draws, and the worst of all; of one draw its own."""
    error, of = max(found)
    mean = f"{statistics.mean(error for error, _ in found):.1e}, " if len(found) > 1 else ""
    return f"{mean}{error:.1e} {of}"


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.studies.errors.gradient_errors", description=__doc__
    )
    parser.add_argument("implementations", nargs="*", metavar="{eager,tvm,triton}", help="whose (eager and tvm)")
    parser.add_argument("--draws", type=int, default=DRAWS, help=f"draws of inputs (default: {DRAWS})")
    options = parser.parse_args(arguments)
    implementations = options.implementations or ["eager", "tvm"]
    unknown = [name for name in implementations if name not in LABELS]
    if unknown:
        parser.error(f"no implementation {unknown[0]!r}; there are {', '.join(LABELS)}")
    if options.draws < 1:
        parser.error(f"--draws {options.draws}: at least one draw is needed")
    if "triton" in implementations:
        os.environ["TRITON_INTERPRET"] = "1"  # Read when Triton is imported, which is when a kernel is first wanted.
    rows(implementations, options.draws)


if __name__ == "__main__":
    main()
