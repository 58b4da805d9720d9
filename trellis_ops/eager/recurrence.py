"""Any rule in eager PyTorch, token by token: the program of a token, for all sequences and heads at once.

Source: docs/rules.md. Differentiable by autograd. States and arithmetic are float32, or float64 for float64 inputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor

from codegen.recurrence.emit.pytorch import compiled
from codegen.recurrence.of_rule import token_program, used_chunk_states
from codegen.recurrence.program import Axes
from codegen.recurrence.tensors import HEAD, KEEP, PUT, state_behind, states, tensors
from codegen.rule import Rule
from trellis_ops.outer_gradient import is_first_order

Named = Mapping[str, Tensor]


def attention(
    rule: Rule,
    given: Named,
    initial: Named | None = None,
    *,
    chunk_size: int = 1,
    cu_seqlens: Tensor | None = None,
    outer_gradient: str = "bilevel",
) -> tuple[Tensor, dict[str, Tensor]]:
    """T tokens of a rule.

    Args:
        rule: any.
        given: by the names of `codegen.recurrence.tensors.tensors`: `[B, T, H, *axes]`, or `[H, *axes]` of what each
            head has; all of them.
        initial: by the names of its states, `[N, H, *axes]` with N = B, or one for each packed sequence; None is zero.
        chunk_size: C; z is taken at the states at the start of the chunk.
        cu_seqlens: `[N + 1]`, offsets of the sequences packed into B = 1.
        outer_gradient: "bilevel", or "first_order" to treat z as a constant inside u.

    Returns:
        y `[B, T, H, D_v]` in the type of q, and the states after the last token, by name.

    Raises:
        ValueError: an unknown `outer_gradient`.
    """
    q = given["q"]
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    walk = _Walk(rule, chunk_size > 1, not is_first_order(outer_gradient))
    cast = {name: x.to(dtype) for name, x in given.items()}
    if cu_seqlens is None:
        y, finals = walk.run(cast, _first(rule, cast, initial, q.shape[0], dtype), chunk_size)
        return y.to(q.dtype), finals
    count = len(cu_seqlens) - 1
    first = _first(rule, cast, initial, count, dtype)
    outputs, parts = list[Tensor](), list[dict[str, Tensor]]()
    per_head = {each.name for each in tensors(rule) if each.per == HEAD}
    for n, (begin, end) in enumerate(itertools.pairwise(cu_seqlens.tolist())):
        sequence = {name: x if name in per_head else x[:, begin:end] for name, x in cast.items()}
        y, finals = walk.run(sequence, {name: x[n : n + 1] for name, x in first.items()}, chunk_size)
        outputs.append(y)
        parts.append(finals)
    finals = {name: torch.cat([part[name] for part in parts]) for name in first}
    return torch.cat(outputs, dim=1).to(q.dtype), finals


def step(rule: Rule, given: Named, state: Named, chunk_state: Named | None = None) -> Tensor:
    """One token; `state`, and the sums of writes in `chunk_state`, are moved in place.

    Args:
        rule: any.
        given: by name, `[B, H, *axes]`, or `[H, *axes]` of what each head has.
        state: by name, `[B, H, *axes]`, float32; the ring of a window has its oldest pair first.
        chunk_state: by the names of `codegen.recurrence.tensors.chunk_states`; None takes z at the state itself.

    Returns:
        y `[B, H, D_v]` in the type of q.
    """
    per_head = {each.name for each in tensors(rule) if each.per == HEAD}
    dtype = torch.float64 if given["q"].dtype == torch.float64 else torch.float32
    tokens = {name: (x if name in per_head else x.unsqueeze(1)).to(dtype) for name, x in given.items()}
    walk = _Walk(rule, chunk_state is not None, bilevel=True)
    y, finals = walk.run(tokens, dict(state), 1, chunk_state)
    for name, x in finals.items():
        state[name].copy_(x)
    return y[:, 0].to(given["q"].dtype)


def zero_states(rule: Rule, sizes: Mapping[str, int], sequences: int, heads: int, like: Tensor) -> dict[str, Tensor]:
    """The states of a rule before any token.

    Args:
        rule: any.
        sizes: of the axes "slots", "dim_v", "dim_k".
        sequences, heads: N and H.
        like: whose type and device they have.
    """
    known = dict(sizes) | {"window": rule.window - 1}
    return {name: like.new_zeros(sequences, heads, *(known[x] for x in axes)) for name, axes in states(rule).items()}


def sizes_of(given: Named) -> dict[str, int]:
    """The sizes of the axes of a call; one pass has as many slots as D_v."""
    slots = given["target"] if "target" in given else given["v"]
    return {"dim_k": given["q"].shape[-1], "dim_v": given["v"].shape[-1], "slots": slots.shape[-1]}


def _first(rule: Rule, given: Named, initial: Named | None, sequences: int, dtype: torch.dtype) -> dict[str, Tensor]:
    if initial is not None:
        return {name: initial[name].to(dtype) for name in states(rule)}
    return zero_states(rule, sizes_of(given), sequences, given["q"].shape[2], given["q"])


class _Walk:
    """The tokens of one sequence, or of several of equal length, one after another."""

    def __init__(self, rule: Rule, chunked: bool, bilevel: bool) -> None:
        self.rule = rule
        self.program, self.token = compiled(token_program, rule, chunked, bilevel)
        self.starts: Mapping[str, Axes] = used_chunk_states(rule, chunked)

    def run(
        self, given: Named, first: dict[str, Tensor], chunk_size: int, starts: Named | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """y `[B, T, H, D_v]` and the final states; `starts`, for one token, are the states of its chunk."""
        batch, tokens, heads = given["q"].shape[:3]
        rows = {name: x.flatten(0, 1) for name, x in first.items()}
        columns = {each.name: self._by_token(each.per == HEAD, given[each.name], batch) for each in tensors(self.rule)}
        kept = {} if starts is None else {name: starts[name].flatten(0, 1) for name in self.starts}
        outputs = []
        for t in range(tokens):
            if starts is None and t % chunk_size == 0:
                kept = {name: self._start(name, rows) for name in self.starts}
            at = {name: x if x.ndim and name in self._per_head else x[t] for name, x in columns.items()}
            values = at | rows | kept | self._ring(t, given["q"], batch * heads)
            moved = self.token(*(values[x] for x in self.program.given))
            found = dict(zip((*self.program.moved, "y"), moved, strict=True))
            outputs.append(found.pop("y"))
            rows |= {name: found[name] for name in rows if name in found}
            kept |= {name: found[name] for name in kept if name in found}
        if starts is not None:
            for name in self.program.moved.keys() & self.starts.keys():
                starts[name].copy_(_apart(kept[name], batch))
        finals = {name: _apart(self._final(name, x, tokens), batch) for name, x in rows.items()}
        y = torch.stack(outputs) if outputs else given["v"].new_zeros(0, batch * heads, given["v"].shape[-1])
        return y.view(tokens, batch, heads, y.shape[-1]).transpose(0, 1), finals

    @property
    def _per_head(self) -> set[str]:
        return {each.name for each in tensors(self.rule) if each.per == HEAD}

    def _by_token(self, per_head: bool, x: Tensor, batch: int) -> Tensor:
        """`[T, B H, *axes]`, or `[B H, *axes]` of what each head has."""
        if per_head:
            return x.expand(batch, *x.shape).flatten(0, 1)
        return x.transpose(0, 1).flatten(1, 2)

    def _start(self, name: str, rows: Named) -> Tensor:
        behind = state_behind(name)
        return rows[behind] if behind is not None else torch.zeros_like(rows[f"S{name.removeprefix('A')}"])

    def _ring(self, t: int, like: Tensor, programs: int) -> dict[str, Tensor]:
        if self.rule.window == 1:
            return {}
        size = self.rule.window - 1
        put = like.new_zeros(size)
        put[t % size] = 1
        return {KEEP: (1 - put).expand(programs, -1), PUT: put.expand(programs, -1)}

    def _final(self, name: str, x: Tensor, tokens: int) -> Tensor:
        """A state as it is carried: of a ring the oldest pair first."""
        return x.roll(-(tokens % (self.rule.window - 1)), dims=1) if name.startswith("window") else x


def _apart(x: Tensor, batch: int) -> Tensor:
    """`[B, H, ...]` of `[B H, ...]`."""
    return x.view(batch, -1, *x.shape[1:])
