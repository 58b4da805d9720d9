"""The operator on states in a pool as torch.library sees it, of any rule: one token of each row, or packed rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from codegen.kernels.sequences import Sequences
from codegen.recurrence.of_rule import used_chunk_states
from codegen.recurrence.tensors import HEAD, states, tensors
from codegen.rule import Rule
from trellis_ops.calls import family_arguments, values
from trellis_ops.calls.arguments import Request
from trellis_ops.dispatch import launch, launch_pool
from trellis_ops.eager import pool as eager
from trellis_ops.operators import autocast, transforms
from trellis_ops.operators.family import quick_step, rule_of
from trellis_ops.operators.family.given import check_values, parted
from trellis_ops.operators.plan import QUICK_PLANS, Plan, plan
from trellis_ops.pool import layout, quick
from trellis_ops.pool.rows import check_rows

_SCHEMA = (
    "(Tensor[] given, Tensor(a!)[] state, Tensor(b!)[] starts, Tensor[] first, Tensor state_indices, Tensor positions,"
    " Tensor? cu_seqlens, str rule, int chunk_size, str? implementation) -> Tensor"
)


def request(*arguments: Any) -> Request:
    """The checked call: its tensors, then how many each list has, the rule and the chunk."""
    *flat, state_indices, positions, cu_seqlens, counts, rule, chunk_size = arguments
    given, state, starts, first = parted(flat, counts)
    return family_arguments.pool_request(
        rule_of(rule), given, (state, starts), first, (state_indices, positions), cu_seqlens, chunk_size
    )


def run(
    given: list[Tensor],
    state: list[Tensor],
    starts: list[Tensor],
    first: list[Tensor],
    state_indices: Tensor,
    positions: Tensor,
    cu_seqlens: Tensor | None,
    rule: str,
    chunk_size: int,
    implementation: str | None,
) -> Tensor:
    """y `[N, H, D_v]` or `[B, T, H, D_v]`, by whichever implementation is best; pools move in place."""
    counts, rows = tuple(map(len, (given, state, starts, first))), (state_indices, positions)
    key = None if cu_seqlens is not None else quick.key_of(given, state, counts, rows, rule, chunk_size, implementation)
    known = QUICK_PLANS.get(key)
    pools = [*state, *starts]
    if known is not None:
        try:
            _check_rows(known, given, pools, first, rows)
            y = quick.step(known, given, pools, first, len(state), rows)
        except (RuntimeError, IndexError):
            # Bad input has a better reason. A kernel that has begun must not run again: it has moved states.
            request(*given, *pools, *first, *rows, cu_seqlens, counts, rule, chunk_size)
            raise
        if y is not None:
            return y
    flat = (*given, *pools, *first, *rows, cu_seqlens)
    found = plan(request, flat, (counts, rule, chunk_size), implementation)
    made, q = rule_of(rule), given[0]
    if cu_seqlens is not None:
        values.check_offsets(cu_seqlens, q.shape[1], stall=found.checks_values)
    _check_rows(found, given, pools, first, rows)
    if found.checks_values:
        # Slots that no row names may hold anything.
        check_values(made, given, first)
    tokens = given if q.ndim == 3 else _flat(made, given)
    sequences = found.sequences
    if cu_seqlens is not None:
        sequences = launch.packed_sequences(cu_seqlens, q.shape[1], found.chunk_tokens)
    if found.operator is None:
        with autocast.off(q.device):
            y = _eager(made, tokens, state, starts, first, rows, sequences, chunk_size)
    else:
        y = launch_pool.run(found.operator, tokens, pools, first, rows, sequences)
        quick_step.remember(key, found, known is not None, made, given, pools)
    return y if q.ndim == 3 else y.view(*q.shape[:2], *y.shape[1:])


def _check_rows(
    found: Plan,
    given: Sequence[Tensor],
    pools: Sequence[Tensor],
    first: Sequence[Tensor],
    rows: tuple[Tensor, Tensor],
) -> None:
    """What shapes and types do not show: what the rows of the call say, and where pools lie."""
    q = given[0]
    if q.is_cpu or found.checks_values:
        check_rows(*rows, pools[0].shape[0], q.shape[:-2].numel())
    layout.check(pools, (*given, *first, *rows))


def _flat(rule: Rule, given: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of tokens with the tokens of all rows one after another."""
    return [x if each.per == HEAD else x.flatten(0, 1) for each, x in zip(tensors(rule), given, strict=True)]


def _eager(
    rule: Rule,
    tokens: Sequence[Tensor],
    state: Sequence[Tensor],
    starts: Sequence[Tensor],
    first: Sequence[Tensor],
    rows: tuple[Tensor, Tensor],
    sequences: Sequences,
    chunk_size: int,
) -> Tensor:
    named = {each.name: x for each, x in zip(tensors(rule), tokens, strict=True)}
    pool = eager.Pool(
        dict(zip(states(rule), state, strict=True)),
        dict(zip(used_chunk_states(rule, bool(starts)), starts, strict=True)),
        dict(zip(states(rule), first, strict=False)),
    )
    state_indices, positions = rows
    slots = torch.where(state_indices < state[0].shape[0], state_indices, -1)
    lengths = tuple(sequences.cu_seqlens.diff().tolist())
    if set(lengths) == {1}:
        return eager.step(rule, named, pool, slots, positions, chunk_size)
    return eager.attention(rule, named, pool, slots, positions, lengths, chunk_size)


pool = transforms.operator("trellis_ops::pool", run, "trellis_step", _SCHEMA)


@pool.register_fake
def _(given: list[Tensor], state: list[Tensor], starts: list[Tensor], first: list[Tensor], *rest: Any) -> Tensor:
    state_indices, positions, cu_seqlens, rule, chunk_size, _ = rest
    rows = (state_indices, positions)
    checked = family_arguments.pool_request(rule_of(rule), given, (state, starts), first, rows, cu_seqlens, chunk_size)
    return given[0].new_empty((*given[0].shape[:-1], checked.spec.problem.dim_v))
