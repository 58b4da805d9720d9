"""The arguments of the kernel whose states lie in a pool `[capacity, heads, ..]`, one slot of it for each sequence.

A row of a call is a sequence's next tokens: `state_indices` has its slot, `positions` how many tokens that has seen.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from codegen.kernels.arguments import FLOAT, IN_PLACE, INPUT, INT, READ, WRITTEN, Argument
from codegen.kernels.rule_arguments import is_chunked
from codegen.recurrence.of_rule import used_chunk_states
from codegen.recurrence.program import Axes
from codegen.recurrence.tensors import HEAD, Given, states, tensors
from codegen.rule import Rule
from codegen.schedules.schedule import POOL
from codegen.spec import POOL_OPERATOR, Spec

if TYPE_CHECKING:
    import torch

KERNEL = "memory_pool"
"""Its name, and that of its template."""

FIRST = "first_"
"""What the names begin with of the states that a fresh row starts from."""

STRIDE = "_stride"
"""What the names of numbers end with that say how many values lie between the slots of a pool."""

CAPACITY, FIRST_HEADS = "capacity", "first_heads"
"""Axes that are arguments too: how many slots a pool has; H, or 0 where fresh rows start from zero."""

ROWS = ("state_indices", "positions")
"""What says of each row where its state lies, and how far it has come."""

VARIANTS = {POOL: KERNEL}
"""The kernel of every variant of the operator."""


def is_of_pool(spec: Spec) -> bool:
    """Whether the states of an operator lie in a pool."""
    return spec.problem.operator == POOL_OPERATOR


def pooled(spec: Spec) -> Mapping[str, Axes]:
    """Every pool by name, with the axes of one head: the states, then those from the start of the chunk."""
    return _pooled(spec.rule, is_chunked(spec))


@functools.lru_cache(maxsize=512)
def _pooled(rule: Rule, chunked: bool) -> Mapping[str, Axes]:
    return states(rule) | used_chunk_states(rule, chunked)


def kernel_arguments(spec: Spec) -> tuple[Argument, ...]:
    """The arguments of the kernel in order."""
    *given, y = operator_arguments(spec)
    offsets = Argument("cu_seqlens", ("offsets",), INT, READ)
    numbers = (CAPACITY, FIRST_HEADS, *(f"{name}{STRIDE}" for name in pooled(spec)))
    return (*given, offsets, *(Argument(name, (), INT, READ) for name in numbers), y)


def operator_arguments(spec: Spec) -> tuple[Argument, ...]:
    """What the operator takes and gives, besides the offsets of sequences and the layout of its pools."""
    return (*_tensors(spec), *_pools(spec), *_rows(), Argument("y", ("tokens", "heads", "dim_v"), INPUT, WRITTEN))


def layout(spec: Spec, tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """The plain numbers of a call on `tensors`: how large its pools are, and how far their slots lie apart."""
    found = {f"{name}{STRIDE}": tensors[name].stride(0) for name in pooled(spec)}
    first, *_ = states(spec.rule)
    return found | {CAPACITY: tensors[first].shape[0], FIRST_HEADS: tensors[f"{FIRST}{first}"].shape[0]}


def _tensors(spec: Spec) -> Iterator[Argument]:
    for each in tensors(spec.rule):
        axes = ("heads", *each.axes) if each.per == HEAD else ("tokens", "heads", *each.axes)
        yield Argument(each.name, axes, _type(each), READ)


def _type(each: Given) -> str:
    return INPUT if each.is_input else FLOAT


def _pools(spec: Spec) -> Iterator[Argument]:
    for name, axes in pooled(spec).items():
        yield Argument(name, (CAPACITY, "heads", *axes), FLOAT, IN_PLACE)
    for name, axes in states(spec.rule).items():
        yield Argument(f"{FIRST}{name}", (FIRST_HEADS, *axes), FLOAT, READ)


def _rows() -> Iterator[Argument]:
    for name in ROWS:
        yield Argument(name, ("sequences",), INT, READ)
