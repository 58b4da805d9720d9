"""What a first call costs, in a process of its own: the compiler's import, each kernel, and a call that finds its own.

    python -m tests.benchmarks.studies.kernels.first_call forward

prints, as JSON, the seconds of each by the clock on the wall and by the processor's. With a TRELLIS_OPS_CACHE folder
that is empty, `forward` and `backward` compile; `call` then finds on the disk what `forward` has left there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[4]
CHUNKS = (64, 16, 1)
IMPORT, CALL = "import", "call"

# Far more than two tiles: with C = 1 a shorter prompt goes token by token, in another kernel.
_COMPILED_TOKENS = 4096
_CALLED_TOKENS = 8


@dataclass
class Spent:
    """Seconds by the clock on the wall, and what the processor says that it took."""

    wall: float = 0.0
    processor: float = 0.0


def kernel(direction: str, chunk: int) -> str:
    """What is compiled, as the report names it."""
    return f"{direction}, C = {chunk}"


def in_a_process(what: str, environment: Mapping[str, str]) -> dict[str, Spent]:
    """Run this module on its own with `environment` on top of this one's.

    Bytecode is kept, as it is for users: without it the call would compile the Python of this package.
    """
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.studies.kernels.first_call", what]
    done = subprocess.run(
        command, cwd=ROOT, env=inherited | dict(environment), capture_output=True, text=True, check=True
    )
    return {name: Spent(**seconds) for name, seconds in json.loads(done.stdout).items()}


@contextmanager
def _spent() -> Iterator[Spent]:
    spent = Spent()
    wall, processor = time.perf_counter(), time.process_time()
    yield spent
    spent.wall, spent.processor = time.perf_counter() - wall, time.process_time() - processor


def _compile(direction: str, chunks: tuple[int, ...]) -> dict[str, Spent]:
    """TVM's import, then the default schedules, one after another: the first pays for what TVM imports later."""
    from codegen.backends.tvm import runtime as tvm_runtime
    from codegen.device import cpu
    from codegen.interruption.collection import without_collection
    from codegen.kernels.build import build
    from codegen.rule import Rule
    from codegen.schedules.registry import default
    from codegen.spec import Problem, Spec

    base, found = Problem(batch=1, tokens=_COMPILED_TOKENS, heads=8, direction=direction), {}
    with _spent() as found[IMPORT]:
        tvm_runtime.load()
        with without_collection():
            import tvm  # noqa: F401
    for chunk in chunks:
        spec = Spec(Rule(), replace(base, chunk=chunk))
        with _spent() as found[kernel(direction, chunk)]:
            build(spec, default("tvm", spec, cpu()), cpu())
    return found


def _call() -> dict[str, Spent]:
    import torch

    from trellis_ops import trellis_attention

    q, k, v, target = (torch.randn(1, _CALLED_TOKENS, 8, 64) for _ in range(4))
    log_decay, step_size = -torch.rand(1, _CALLED_TOKENS, 8), torch.full((8,), 0.1)
    with _spent() as spent:
        trellis_attention(q, k, v, target, log_decay, step_size)
    return {CALL: spent}


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.studies.kernels.first_call", description=__doc__)
    parser.add_argument("what", choices=("forward", "backward", "call"))
    what = parser.parse_args(arguments).what
    found = {}
    # Imported here, so that no part of the compiler's import is torch's.
    import trellis_ops  # noqa: F401

    if what != "call":
        found = _compile(what, CHUNKS if what == "forward" else CHUNKS[:1])
    if what != "backward":
        found |= _call()
    print(json.dumps({name: asdict(spent) for name, spent in found.items()}))


if __name__ == "__main__":
    main()
