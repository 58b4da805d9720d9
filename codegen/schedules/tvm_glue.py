"""TVM's schedules of the kernels between the products of a block, on CPUs: they have no tile, and sum row by row."""

from __future__ import annotations

from typing import TypeVar

from codegen.device import Device
from codegen.schedules.tvm_fields import FEWEST_ACCUMULATORS, TvmFields
from codegen.spec import INPUT_OPERATORS, Spec

Kind = TypeVar("Kind", bound=TvmFields)

_NUMBERS_PER_THREAD = 2**20
"""Of one tensor: passing over fewer takes less time than waking a thread does."""

_MOST_TASKS = 64


def default(kind: type[Kind], spec: Spec, device: Device) -> Kind:
    """Whole vectors, and as many threads as have enough numbers to pass over."""
    problem = spec.problem
    width = min(16, max(4, device.vector_bits // 32))
    features = problem.dim_k if problem.operator in INPUT_OPERATORS else problem.dim_v
    numbers = problem.batch * problem.tokens * problem.heads * features
    wanted = max(1, min(device.cores, _MOST_TASKS, numbers // _NUMBERS_PER_THREAD))
    threads = max(n for n in TvmFields.choices["threads"] if isinstance(n, int) and n <= wanted)
    return kind(problem.operator, width, width, FEWEST_ACCUMULATORS, threads)
