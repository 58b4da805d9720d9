"""Triton's schedules of the kernels between the products of a block; they have no tile, no dots and no loop.

`num_stages` of the mixer is how many memories a program holds at once: with 2 the second is loaded before the first is
worked on, with 1 after the first is stored.
"""

from __future__ import annotations

from typing import TypeVar

from codegen.device import Device
from codegen.schedules.schedule import VARIANTS
from codegen.schedules.triton_fields import TritonFields
from codegen.spec import Problem, Spec

Kind = TypeVar("Kind", bound=TritonFields)

OF_BETWEEN = ("norm", "mixer", "swiglu")
"""The variants of these kernels."""

MEMORIES = 2
"""Of a head."""

WIDEST = 2**16
"""Of a row that one program holds."""

_WIDE_ROW = 4096
_WIDE_STATE = 64


def default(kind: type[Kind], spec: Spec, device: Device) -> Kind:
    """Eight warps for the mixer, which holds two memories, or up to 64 slots all of both; four for a row.

    So nothing spills on sm_90 with up to 64 slots and channels.
    """
    problem = spec.problem
    assert problem.layer is not None
    variant = VARIANTS[problem.operator][0]
    if variant == "mixer":
        widest = max(problem.slots, problem.dim_k, problem.dim_v)
        return kind(variant, 16, 8, 1 if widest > _WIDE_STATE else MEMORIES, "ieee")
    return kind(variant, 16, 8 if variant == "norm" and problem.layer.width > _WIDE_ROW else 4, 1, "ieee")


def why_illegal(schedule: TritonFields, problem: Problem) -> str | None:
    """Why such a schedule cannot be, by its own fields and the layer, in one sentence; None if it can."""
    layer = problem.layer
    assert layer is not None
    most = MEMORIES if schedule.variant == "mixer" else 1
    if schedule.num_stages > most:
        return f"variant {schedule.variant!r} has no loop: num_stages must be at most {most}"
    if layer.pooled:
        return "its kernels have the states of a row in the row itself, not in a slot of pools"
    if layer.weights != "float32":
        return f"its products are torch's, and weights have the type of the problem: 'float32', not {layer.weights!r}"
    if layer.width > WIDEST:
        return f"a program holds a row of at most {WIDEST} numbers, not {layer.width}"
    return None
