"""Rows of a call on their slots of a pool, in eager PyTorch.

A row's tokens up to the end of its chunk, and those of its last chunk, are steps; the whole chunks between them go at
once. On a GPU the rows are read back, which waits for it; no kernel does.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from codegen.recurrence.tensors import HEAD, state_behind, tensors
from codegen.rule import Rule
from trellis_ops.eager import forward, recurrence
from trellis_ops.tokens import Tokens

Named = Mapping[str, Tensor]


@dataclass(frozen=True)
class Pool:
    """States that rows move in place.

    Attributes:
        states: `[capacity, H, *axes]`, by the names of `codegen.recurrence.tensors.states`.
        starts: those at the start of the chunk, by the names of `used_chunk_states`; none where chunks have one token.
        first: what a fresh row starts from, `[H, *axes]`, by the names of states; none for zeros.
    """

    states: Named
    starts: Named
    first: Named


def step(rule: Rule, given: Named, pool: Pool, state_indices: Tensor, positions: Tensor, chunk_size: int) -> Tensor:
    """One token of each row.

    Args:
        rule: any.
        given: by the names of the record, `[N, H, *axes]`, or `[H, *axes]` of what each head has.
        pool: whose slots are read and written.
        state_indices, positions: `[N]`; a row below 0 is skipped.
        chunk_size: C.

    Returns:
        y `[N, H, D_v]`, zero in the rows that are skipped.
    """
    per_head = _per_head(rule)
    live = ((state_indices >= 0) & (positions >= 0)).nonzero().squeeze(1)
    y = given["v"].new_zeros(given["v"].shape)
    if not len(live):
        return y
    slots, at = state_indices[live].long(), positions[live]
    held = {name: _where(at == 0, _first(pool, name, x), x[slots]) for name, x in pool.states.items()}
    starts = {name: _where(at % chunk_size == 0, _start(name, held), x[slots]) for name, x in pool.starts.items()}
    tokens = {name: x if name in per_head else x[live] for name, x in given.items()}
    # A rule whose write needs no z has no states from the start of a chunk.
    y[live] = recurrence.step(rule, tokens, held, starts if chunk_size > 1 else None)
    for name, x in {**pool.states, **pool.starts}.items():
        x[slots] = (held | starts)[name]
    return y


def attention(
    rule: Rule,
    given: Named,
    pool: Pool,
    state_indices: Tensor,
    positions: Tensor,
    lengths: tuple[int, ...],
    chunk_size: int,
) -> Tensor:
    """The next tokens of each row.

    Args:
        rule, pool, state_indices, positions, chunk_size: as in `step`.
        given: by the names of the record, the tokens of all rows one after another: `[tokens, H, *axes]`.
        lengths: how many tokens each row has.

    Returns:
        y `[tokens, H, D_v]`, zero in the rows that are skipped.
    """
    per_head = _per_head(rule)
    y = given["v"].new_zeros(given["v"].shape)
    ends = list(itertools.accumulate(lengths))
    for n, (slot, position) in enumerate(zip(state_indices.tolist(), positions.tolist(), strict=True)):
        if slot < 0 or position < 0:
            continue
        row = slice(n, n + 1)
        for begin, end in _pieces(position, lengths[n], chunk_size):
            first = ends[n] - lengths[n] + begin
            tokens = slice(first, first + end - begin)
            part = {name: x if name in per_head else x[tokens] for name, x in given.items()}
            if end - begin > 1:
                y[tokens] = _whole_chunks(rule, part, pool, slot, position + begin == 0, chunk_size)
            else:
                y[tokens] = step(rule, part, pool, state_indices[row], positions[row] + begin, chunk_size)
    return y


def _pieces(position: int, length: int, chunk: int) -> list[tuple[int, int]]:
    """The tokens of a row that go together: all of its whole chunks, and each of the others alone."""
    lead = min(-position % chunk, length)
    whole = (length - lead) // chunk * chunk
    alone = [(t, t + 1) for t in (*range(lead), *range(lead + whole, length))]
    return sorted([*alone, (lead, lead + whole)] if whole else alone)


def _whole_chunks(rule: Rule, given: Named, pool: Pool, slot: int, fresh: bool, chunk: int) -> Tensor:
    """y of one row's tokens; nothing is kept from the start of its last chunk, which ends with them."""
    row = torch.tensor([slot], device=given["q"].device)
    held = {name: _first(pool, name, x).unsqueeze(0) if fresh else x[row] for name, x in pool.states.items()}
    per_head = _per_head(rule)
    tokens = {name: x if name in per_head else x.unsqueeze(0) for name, x in given.items()}
    if rule.is_trellis:
        pair = (held["S_k"], held["S_v"])
        six = (tokens[name] for name in Tokens._fields)
        y, finals = forward.attention(*six, rule=rule, chunk_size=chunk, initial_state=pair)
        moved = dict(zip(("S_k", "S_v"), finals, strict=True))
    else:
        y, moved = recurrence.attention(rule, tokens, held, chunk_size=chunk)
    for name, x in pool.states.items():
        x[row] = moved[name]
    return y[0]


def _per_head(rule: Rule) -> set[str]:
    return {each.name for each in tensors(rule) if each.per == HEAD}


def _first(pool: Pool, name: str, like: Tensor) -> Tensor:
    return pool.first[name] if pool.first else torch.zeros_like(like[0])


def _start(name: str, held: Named) -> Tensor:
    """What a state from the start of a chunk is where a chunk starts: a copy, or a sum of writes at zero."""
    behind = state_behind(name)
    return torch.zeros_like(held[f"S{name.removeprefix('A')}"]) if behind is None else held[behind]


def _where(rows: Tensor, chosen: Tensor, other: Tensor) -> Tensor:
    return torch.where(rows.view(-1, *[1] * (other.ndim - 1)), chosen, other)
