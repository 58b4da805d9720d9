"""What a training step of the operator holds at most, in a process of its own, which does nothing else:

    python -m tests.benchmarks.studies.growth.training_memory tvm 4096

prints the bytes that became resident beyond the inputs, at so many tokens: by the kernels (`tvm`), by the operator's
eager implementation, whose reverse pass is written by hand and computes the states again (`eager`), or by autograd of
`trellis_ops.eager.forward.attention` (`autograd`).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from codegen.spec import Problem
from tests.benchmarks.studies.growth.resident import forget_peak, peak_bytes, resident_bytes

ROOT = Path(__file__).parents[4]
STEPS = {"tvm": "kernels", "eager": "eager reverse pass", "autograd": "autograd of eager"}
"""What a step is by: the name on the command line, and what it is called in reports."""

_FIRST_TOKENS = 128


def training_bytes(step: str, tokens: int) -> int:
    """Run this module on its own."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "tests.benchmarks.studies.growth.training_memory",
        step,
        str(tokens),
    ]
    return int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def _measured(by: str, tokens: int) -> int:
    import torch

    from codegen.rule import Rule
    from codegen.spec import Spec
    from tests.benchmarks.subjects.calls import subject, training_step

    def prepared(count: int):
        bound = subject(Spec(Rule(), Problem(batch=1, heads=8, tokens=count, chunk=64)), torch.device("cpu"), True)
        if by == "autograd":
            return training_step(bound, bound.eager)
        bound.operator.kwargs["implementation"] = by
        return training_step(bound, bound.operator)

    prepared(_FIRST_TOKENS)()  # It compiles, once for every length.
    step = prepared(tokens)
    before = resident_bytes()
    forget_peak()
    gradients = step()
    peak = peak_bytes()
    del gradients
    return peak - before


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.studies.growth.training_memory", description=__doc__
    )
    parser.add_argument("by", choices=list(STEPS), help="what the step is by")
    parser.add_argument("tokens", type=int, help="of how many tokens")
    options = parser.parse_args(arguments)
    print(_measured(options.by, options.tokens))


if __name__ == "__main__":
    main()
