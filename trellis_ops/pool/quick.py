"""A decode step on a pool whose kernel checks the arguments itself, as `family.quick_step` has it without a pool."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from trellis_ops.dispatch import forced_schedule
from trellis_ops.operators.plan import Plan

_increment_version = torch._C._increment_version


def key_of(
    given: Sequence[Tensor],
    state: Sequence[Tensor],
    counts: tuple[int, ...],
    rows: tuple[Tensor, Tensor],
    rule: str,
    chunk_size: int,
    implementation: str | None,
) -> Hashable | None:
    """All that chooses a kernel, and what kernels do not compare.

    None off the CPU, of several tokens, of no rule, and where a schedule is forced.
    """
    if forced_schedule.current() is not None:
        return None
    if len(given) < 3 or not state or not given[0].is_cpu or given[0].ndim != 3:
        return None
    q, _, v, *_ = given
    state_indices, positions = rows
    sizes = (q.shape, v.shape, state[0].shape, q.dtype)
    # Rows are cast for the kernel, which then refuses none of another type.
    of_rows = (state_indices.shape, positions.shape, state_indices.dtype, positions.dtype)
    return ("pool", rule, chunk_size, implementation, counts, sizes, of_rows, torch.get_num_threads())


def step(
    found: Plan,
    given: Sequence[Tensor],
    pools: Sequence[Tensor],
    first: Sequence[Tensor],
    states: int,
    rows: tuple[Tensor, Tensor],
) -> Tensor | None:
    """y `[N, H, D_v]`, the slots moved in place; None, and nothing written, if sizes, types or memory are refused.

    Args:
        found: what `plan.QUICK_PLANS` has for the call's key.
        given: of the call.
        pools: of its states, then of those from the start of the chunk, which are known to lie apart.
        first: what fresh rows start from, or none.
        states: how many of the pools are states.
        rows: state_indices and positions, which are known to be right.
    """
    assert found.operator is not None
    _, _, v, *_ = given
    starting = first or [x.new_empty((0, *x.shape[2:])) for x in pools[:states]]
    state_indices, positions = (x.to(torch.int32) for x in rows)
    numbers = (pools[0].shape[0], starting[0].shape[0], *[x.stride(0) for x in pools])
    y = torch.empty_like(v)
    (kernel,) = found.operator.kernels
    try:
        kernel(found.heads, *given, *pools, *starting, state_indices, positions, found.offsets, *numbers, y)
    except (AttributeError, ValueError, TypeError):
        return None
    except BaseException:
        _increment_version(tuple(pools))
        raise
    _increment_version(tuple(pools))
    return y
