"""Runs a compiled operator on states that lie in a pool."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from codegen.kernels.operator import CompiledOperator
from codegen.kernels.pool.arguments import FIRST, pooled
from codegen.kernels.sequences import Sequences
from codegen.recurrence.tensors import states, tensors


def run(
    operator: CompiledOperator,
    given: Sequence[Tensor],
    pools: Sequence[Tensor],
    first: Sequence[Tensor],
    rows: tuple[Tensor, Tensor],
    sequences: Sequences,
) -> Tensor:
    """y `[tokens, H, D_v]`; the slots of the rows move in place.

    Args:
        operator: of `codegen.spec.POOL_OPERATOR`.
        given: in the order of the record, the tokens of all rows one after another.
        pools: of the states, then of those from the start of the chunk; the slots of each are contiguous.
        first: what fresh rows start from, or none.
        rows: state_indices and positions.
        sequences: where the tokens of the rows lie.
    """
    rule = operator.spec.rule
    named = {
        each.name: (x if each.is_input else x.float()).contiguous()
        for each, x in zip(tensors(rule), given, strict=True)
    }
    named |= dict(zip(pooled(operator.spec), map(_with_usual_strides, pools), strict=True))
    starting = [x.contiguous() for x in first] or [x.new_empty((0, *x.shape[2:])) for x in pools]
    named |= {f"{FIRST}{name}": x for name, x in zip(states(rule), starting, strict=False)}
    state_indices, positions = (x.to(torch.int32).contiguous() for x in rows)
    y = torch.empty_like(named["v"])
    try:
        operator.forward({**named, "state_indices": state_indices, "positions": positions, "y": y}, sequences)
    finally:
        # Kernels write behind autograd's back, also those that fail.
        increment_version(tuple(pools))
    return y


def _with_usual_strides(pool: Tensor) -> Tensor:
    """The same memory: an axis of length one may have any stride, and kernels compare them."""
    size, usual = 1, []
    for length in reversed(pool.shape[1:]):
        usual.append(size)
        size *= length
    apart = max(pool.stride(0), size) if pool.shape[0] == 1 else pool.stride(0)
    wanted = (apart, *reversed(usual))
    return pool if pool.stride() == wanted else pool.as_strided(pool.shape, wanted)
