"""What is compiled: a spec and a legal schedule, or what the public operator chooses itself."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace

from codegen.backends import backend
from codegen.device import cpu
from codegen.kernels.build import operator_digest
from codegen.rule import MAPS, STEP_SIZES, Rule
from codegen.schedules.legality import why_illegal
from codegen.schedules.registry import SCHEDULES, default, variants_of
from codegen.schedules.schedule import Schedule
from codegen.schedules.triton import TritonSchedule
from codegen.schedules.tvm import TvmSchedule
from codegen.spec import DTYPES, Problem, Spec
from tests.fuzz.rules.drawn import KINDS as OF_RULES
from tests.fuzz.rules.drawn import draw_rule, fitted
from tests.support.winner_record import winner_record
from trellis_ops import forget
from tuning_db import Record, default_store
from tuning_db.errors import FOLDER_VARIABLE

# Names of the generated cases, so that a printed one can be pasted into Python.
__all__ = [
    "Kernel",
    "Problem",
    "Rule",
    "Spec",
    "TritonSchedule",
    "TvmSchedule",
    "chosen",
    "draw_kernel",
    "draw_kernels",
]

KINDS = (
    ("trellis_attention", "forward"),
    ("trellis_attention", "backward"),
    ("trellis_attention", "backward_first_order"),
    ("memory_update", "forward"),
    ("memory_readout", "forward"),
    ("memory_readout_transposed", "forward"),
    ("trellis_step", "forward"),
    ("trellis_step_chunked", "forward"),
)
"""Operators of TRELLIS, and directions, that have kernels; `tests.fuzz.rules.drawn.KINDS` are those of any rule."""

_MOST_TOKENS_BITS, _MOST_PROGRAMS_BITS = 7, 4

_DIMS = (1, 2, 3, 5, 7, 8, 12, 15, 16, 17, 20, 24, 31, 32, 33, 40, 60, 64, 65, 100)
_LARGE_DIMS = (127, 128, 200, 255, 256)
_CHUNKS = (1, 1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 20, 31, 32, 33, 48, 64, 65, 100, 128, 1000, 2**20)
_EPSILONS = (1e-12, 1e-6, 1e-4, 1e-2, 1.0, 100.0)
_MOST_TRIES = 100_000


@dataclass(frozen=True)
class Kernel:
    """One thing to compile and call often.

    Attributes:
        spec: what is computed; its B, T and H are 1, for every call has its own.
        schedule: what the database says is fastest; None leaves the choice to the operator.
        backend: "tvm" or "triton".
        threads: how many torch may use; those of the schedule, which has no more.
    """

    spec: Spec
    schedule: Schedule | None
    backend: str = "tvm"
    threads: int = 1


def draw_kernels(seed: int, kinds: tuple[tuple[str, str], ...], backend: str = "tvm") -> list[Kernel]:
    """A kernel of each of `kinds`, in turn the operator's own choice and a random legal schedule."""
    drawn = random.Random(seed)
    return [draw_kernel(drawn, kind, backend, own_choice=drawn.random() < 0.4) for kind in kinds]


def draw_kernel(drawn: random.Random, kind: tuple[str, str], backend: str, own_choice: bool) -> Kernel:
    """A random spec of `kind`, with a random legal schedule unless the operator is to choose."""
    spec = _draw_spec(drawn, *kind)
    if own_choice:
        return Kernel(spec, None, backend, drawn.choice((1, 2)))
    schedule = _draw_schedule(drawn, spec, backend)
    return Kernel(spec, schedule, backend, schedule.cpu_threads)


@contextlib.contextmanager
def chosen(kernel: Kernel) -> Iterator[None]:
    """Within it the operators find the schedule of `kernel` as the winner of all its shape buckets, and no other."""
    before = os.environ.get(FOLDER_VARIABLE)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[FOLDER_VARIABLE] = folder
        forget()
        if kernel.schedule is not None:
            default_store().put(_winners(kernel.spec, kernel.schedule, kernel.backend))
        try:
            yield
        finally:
            if before is None:
                del os.environ[FOLDER_VARIABLE]
            else:
                os.environ[FOLDER_VARIABLE] = before
            forget()


def _winners(spec: Spec, schedule: Schedule, backend_name: str) -> list[Record]:
    sizes = itertools.product(range(_MOST_TOKENS_BITS + 1), range(_MOST_PROGRAMS_BITS + 1))
    changes = {
        "backend": backend_name,
        "template_digest": operator_digest(spec.problem, backend_name),
        "toolchain": backend(backend_name).toolchain(),
    }
    return [
        winner_record(replace(spec, problem=replace(spec.problem, tokens=1 << t, heads=1 << h)), schedule, **changes)
        for t, h in sizes
    ]


def _draw_spec(drawn: random.Random, operator: str, direction: str) -> Spec:
    def dim() -> int:
        return drawn.choice(_LARGE_DIMS if drawn.random() < 0.08 else _DIMS)

    maps = tuple(MAPS)
    rule = Rule(*drawn.choices(maps, k=3), drawn.choice(_EPSILONS), drawn.choice(STEP_SIZES))
    dim_k, dim_v, slots = dim(), dim(), dim()
    if operator.startswith("memory_"):
        dim_v = dim_k
    chunk = 1 if "_step" in operator else drawn.choice(_CHUNKS)
    dtype = drawn.choices(DTYPES, weights=(4, 1, 1))[0]
    if (operator, direction) in OF_RULES:
        rule = draw_rule(drawn, operator)
        sizes = fitted(rule, {"dim_k": dim_k, "dim_v": dim(), "slots": slots, "chunk": chunk})
        return Spec(rule, Problem(operator, 1, 1, 1, **sizes, dtype=dtype, direction=direction))
    return Spec(rule, Problem(operator, 1, 1, 1, dim_k, dim_v, slots, chunk, dtype, direction))


def _draw_schedule(drawn: random.Random, spec: Spec, backend: str) -> Schedule:
    choices = SCHEDULES[backend].choices
    variants = variants_of(spec.problem.operator, backend, spec.problem.direction)
    for _ in range(_MOST_TRIES):
        settings = {name: drawn.choice(values) for name, values in choices.items()}
        schedule = SCHEDULES[backend](drawn.choice(variants), **settings)
        if why_illegal(spec, schedule, cpu()) is None:
            return schedule
    # Such as a backward of long chunks, of whose schedules hardly any is legal.
    return default(backend, spec, cpu())
