"""Sequences served from one pool, a few tokens of some of them in each call, and what the oracle says of each alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from codegen.recurrence.of_rule import used_chunk_states
from codegen.recurrence.tensors import HEAD, states, tensors
from codegen.rule import SOLVE
from tests.trellis_ops.family.cases import Case, inputs
from trellis_ops import family_reference, memory_attention, memory_step

Named = dict[str, Tensor]
Turn = dict[int, int]
"""How many tokens of which sequence one call has."""

BESIDE = 3
"""Values between two states of a slot, which belong to nobody."""


@dataclass
class Served:
    """A pool whose states are views of one block, NaN where no sequence has written.

    Attributes:
        case: its batch are the sequences.
        given, first: tensors of all tokens, and the states that fresh rows start from.
        slots: of each sequence.
        block: all of the memory.
        state, starts: the pools in it.
        seen: how many tokens of each sequence are done.
        y: of each of its calls, by sequence.
    """

    case: Case
    given: Named
    first: Named
    slots: tuple[int, ...]
    block: Tensor
    state: tuple[Tensor, ...]
    starts: tuple[Tensor, ...]
    seen: dict[int, int] = field(default_factory=dict)
    y: dict[int, list[Tensor]] = field(default_factory=dict)

    def call(self, turn: Turn, implementation: str | None, *, from_zero: bool = False, skipped: int = 0) -> Tensor:
        """The next tokens of some sequences, by the operator of one token where each has one; y of `skipped` others."""
        one = set(turn.values()) == {1}
        per_head = {each.name for each in tensors(self.case.rule) if each.per == HEAD}
        begins = {n: self.seen.get(n, 0) for n in turn}
        parts: dict[str, Tensor] = {}
        for name, x in self.given.items():
            rows = [x[n, begins[n] : begins[n] + count] for n, count in turn.items()] if name not in per_head else [x]
            beside = [torch.full_like(x[0, :1], torch.nan)] * skipped if name not in per_head else []
            # Autocast would join no rows of float16.
            with torch.autocast("cpu", enabled=False):
                parts[name] = torch.cat([*rows, *beside])
        pools = {
            "state_indices": torch.tensor([*(self.slots[n] for n in turn), *[-1] * skipped], dtype=torch.int32),
            "positions": torch.tensor([*begins.values(), *[7] * skipped]),
            "chunk_state": self.starts or None,
            "first_state": None if from_zero else tuple(self.first[name] for name in states(self.case.rule)),
        }
        if self.case.rule.link == SOLVE:
            parts.pop("target")  # The public functions take k for it.
        settings = {"rule": self.case.rule, "chunk_size": self.case.chunk, "implementation": implementation}
        if one:
            y = memory_step(**_called(parts), state=self.state, **pools, **settings)
        else:
            packed = {name: x if name in per_head else x[None] for name, x in parts.items()}
            ends = torch.tensor([0, *itertools.accumulate([*turn.values(), *[1] * skipped])])
            y, _ = memory_attention(**_called(packed), initial_state=self.state, cu_seqlens=ends, **pools, **settings)
            y = y[0]
        at = 0
        for n, count in turn.items():
            self.seen[n] = begins[n] + count
            self.y.setdefault(n, []).append(y[at : at + count])
            at += count
        return y[at:]


def serving(case: Case, slots: tuple[int, ...], capacity: int, dtype: torch.dtype = torch.float32) -> Served:
    """A pool of `capacity` slots for the sequences of a case."""
    given, first = inputs(case, dtype)
    held = torch.float64 if dtype == torch.float64 else torch.float32
    shapes = [(case.heads, *(case.sizes[axis] for axis in axes)) for axes in _pooled(case)]
    ends = list(itertools.accumulate(torch.Size(shape).numel() + BESIDE for shape in shapes))
    block = torch.full((capacity, ends[-1]), torch.nan, dtype=held)
    views = tuple(
        block[:, end - BESIDE - torch.Size(shape).numel() : end - BESIDE].unflatten(1, shape)
        for shape, end in zip(shapes, ends, strict=True)
    )
    count = len(states(case.rule))
    one = {name: x[0].to(held) for name, x in first.items()}
    return Served(case, given, one, slots, block, views[:count], views[count:])


def expected(served: Served, *, from_zero: bool = False) -> Tensor:
    """y `[B, T, H, D_v]` of every sequence alone, from the oracle in float64."""
    case = served.case
    given = {name: x.double() for name, x in served.given.items()}
    first = {name: x.double().expand(case.batch, *x.shape) for name, x in served.first.items()}
    y, _ = family_reference.memory_attention(case.rule, given, None if from_zero else first, chunk_size=case.chunk)
    return y


def turns(case: Case, seed: int) -> Iterator[Turn]:
    """Calls that take all sequences to their ends, some of them decoding while others prefill."""
    draw = torch.Generator().manual_seed(seed)
    left = dict.fromkeys(range(case.batch), case.tokens)
    while any(left.values()):
        most = int(torch.randint(1, 3 * case.chunk + 3, (), generator=draw))
        counts = {n: int(torch.randint(0, min(rest, most) + 1, (), generator=draw)) for n, rest in left.items() if rest}
        turn = {n: count for n, count in counts.items() if count or len(counts) > 1}
        if any(turn.values()):
            yield turn
            left = {n: rest - turn.get(n, 0) for n, rest in left.items()}


def _pooled(case: Case) -> list[tuple[str, ...]]:
    return [*states(case.rule).values(), *used_chunk_states(case.rule, case.chunk > 1).values()]


def _called(named: Named) -> dict[str, object]:
    """The tensors as the public functions take them."""
    found: dict[str, object] = {name: x for name, x in named.items() if not name.startswith("erase")}
    if "erase_a" in named:
        found["erase"] = (named["erase_a"], named["erase_b"])
    return found
