"""What the kernel on a pool is made of for GPUs: the walk of `recurrence`, with pools in place of states."""

from __future__ import annotations

from dataclasses import replace

from codegen.recurrence.emit import triton
from codegen.recurrence.emit.triton import Kernel
from codegen.spec import Spec


def kernel(spec: Spec) -> Kernel:
    """What templates/triton/memory_pool.py.j2 is given as `token`: the parts of a walk over packed sequences."""
    return triton.kernel("recurrence", replace(spec, problem=replace(spec.problem, operator="memory_attention")))
