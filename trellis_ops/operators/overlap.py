"""Whether what a step reads lies apart from the states that it writes: implementations write them in different orders.

A tensor is the bytes at `data_ptr + sum_i n_i stride_i` for 0 <= n_i < size_i, so whether two of them meet is whether
a bounded sum of strides equals their distance. States that share one storage, side by side, do not meet.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from torch import Tensor

from codegen.errors import OverlapError

Term = tuple[int, int, int]
"""A stride in bytes, and the least and the most times that it may be taken."""


def check_apart(
    S_k: Tensor, S_v: Tensor, G_k: Tensor | None = None, G_v: Tensor | None = None, **inputs: Tensor
) -> None:
    """Raise unless a step can write S_k and S_v one after the other, whatever it reads meanwhile.

    Args:
        S_k, S_v: the states that the step moves.
        G_k, G_v: the states that z is taken at; None if they are the same.
        inputs: what else it reads, by name.

    Raises:
        OverlapError: a state meets itself, the other one, one that z is taken at, or an input.
    """
    kept = {name: x for name, x in (("S_k", G_k), ("S_v", G_v)) if x is not None}
    check_states_apart({"S_k": S_k, "S_v": S_v}, kept, inputs, "gradient_state")


def check_states_apart(
    moved: Mapping[str, Tensor], kept: Mapping[str, Tensor], inputs: Mapping[str, Tensor], of_kept: str = "chunk_state"
) -> None:
    """As `check_apart`, of any states.

    Args:
        moved: the states that a step moves, by name.
        kept: those from the start of the chunk.
        inputs: what else it reads.
        of_kept: what users call `kept`.

    Raises:
        OverlapError: as `check_apart`.
    """
    if not all(state.data_ptr() for state in moved.values()):
        return  # Meta tensors lie nowhere.
    states = {f"state's {name}": state for name, state in moved.items()}
    for name, state in states.items():
        if _meets_itself(state):
            raise OverlapError(name=name, other="itself", advice="pass a copy, as .contiguous() makes one")
    if are_apart([*states.values()], [*kept.values(), *inputs.values()]):
        return
    for (other, state), (name, later) in itertools.combinations(states.items(), 2):
        if _meet(state, later):
            raise OverlapError(name=name, other=other, advice="pass a copy, as .clone() makes one")
    for name, start in ((f"{of_kept}'s {name}", x) for name, x in kept.items()):
        for other, state in states.items():
            if _meet(start, state):
                advice = "clone the states at the start of a chunk, or pass None for the exact recurrence"
                raise OverlapError(name=name, other=other, advice=advice)
    for name, tensor in inputs.items():
        for other, state in states.items():
            if _meet(tensor, state):
                raise OverlapError(name=name, other=other, advice="pass a copy, as .clone() makes one")


def are_apart(states: list[Tensor], others: list[Tensor]) -> bool:
    """Whether no state lies between the first and the last byte of another tensor, which mostly says all."""
    spans = sorted([(*span(x), True) for x in states] + [(*span(x), False) for x in others])
    end_of_all = end_of_states = 0
    for begin, end, is_state in spans:
        if begin < (end_of_all if is_state else end_of_states):
            return False
        end_of_all = max(end_of_all, end)
        if is_state:
            end_of_states = max(end_of_states, end)
    return True


def span(x: Tensor) -> tuple[int, int]:
    """Where its first byte lies, and the one after its last."""
    begin, size = x.data_ptr(), x.element_size()
    if x.is_contiguous():
        return begin, begin + x.numel() * size
    return begin, begin + (1 + sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))) * size


def _meet(one: Tensor, other: Tensor) -> bool:
    bounds = {1: [1 - one.element_size(), other.element_size() - 1]}
    for tensor, side, sign in ((one, 1, 1), (other, 0, -1)):
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
            bounds.setdefault(stride * tensor.element_size(), [0, 0])[side] += sign * (size - 1)
    terms = sorted(((stride, least, most) for stride, (least, most) in bounds.items() if stride), reverse=True)
    return _reaches(other.data_ptr() - one.data_ptr(), terms)


def _meets_itself(tensor: Tensor) -> bool:
    if tensor.is_contiguous():
        return False
    sizes = [(stride, size - 1) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]
    falling = sorted(sizes, reverse=True)
    for place, (stride, most) in enumerate(falling):
        smaller = [(step, -count, count) for step, count in falling[place + 1 :]]
        if stride == 0 or _reaches(0, [(stride, 1, most), *smaller]):
            return True
    return False


def _reaches(distance: int, terms: list[Term]) -> bool:
    """Whether a sum of strides, each taken a number of times within its bounds, is `distance`; strides fall."""
    if not terms:
        return distance == 0
    (stride, least, most), *rest = terms
    below = sum(step * count for step, count, _ in rest)
    above = sum(step * count for step, _, count in rest)
    first, last = max(least, -((above - distance) // stride)), min(most, (distance - below) // stride)
    return any(_reaches(distance - times * stride, rest) for times in range(first, last + 1))
