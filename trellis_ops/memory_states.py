"""The states that `memory_attention` and `memory_step` move: before any token, and at the start of a chunk."""

from __future__ import annotations

import torch
from torch import Tensor

from codegen.recurrence.of_rule import used_chunk_states
from codegen.recurrence.tensors import state_behind, states
from codegen.rule import Rule
from codegen.rules import rule_named
from trellis_ops.calls.checks import tensors_in

AnyStates = tuple[Tensor, ...]
"""The states of a rule in the order of its record, see `memory_states`."""


def memory_states(
    rule: str | Rule,
    *,
    batch: int,
    heads: int,
    dim_k: int,
    dim_v: int,
    slots: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> AnyStates:
    """The states of a rule before any token: zeros.

    In order, as far as the rule has them: S `[B, H, D_v, D_k]`, or S_k `[B, H, M, D_k]` and S_v `[B, H, M, D_v]`; P
    of momentum, shaped as S; n `[B, H, D_k]` of a normaliser; the pairs of a window, window_u `[B, H, c - 1, ...]` and
    window_w, the oldest first.

    Args:
        rule: a name or a `Rule`.
        batch: B, or the number of packed sequences.
        heads, dim_k, dim_v, slots: H, D_k, D_v, M; one pass has no slots.
        device, dtype: of the states; float64 for float64 inputs.

    Raises:
        UnknownRuleError: no rule has that name.
        TypeError: two passes without slots.
    """
    made = rule_named(rule)
    if made.passes == 2 and slots is None:
        raise TypeError(f"slots is None, but a rule of two passes such as {rule!r} has some; give an int")
    sizes = {"dim_k": dim_k, "dim_v": dim_v, "slots": dim_v if slots is None else slots, "window": made.window - 1}
    return tuple(
        torch.zeros(batch, heads, *(sizes[axis] for axis in axes), dtype=dtype, device=device)
        for axes in states(made).values()
    )


def chunk_start(rule: str | Rule, state: AnyStates) -> AnyStates:
    """What `memory_step` takes as `chunk_state` in the chunk that begins now: copies of states, and sums at zero.

    Raises:
        UnknownRuleError: no rule has that name.
        TypeError: other states than the rule's.
    """
    made = rule_named(rule)
    named = dict(zip(states(made), tensors_in("state", state, len(states(made))), strict=True))
    found = []
    for name in _start_names(made):
        behind = state_behind(name)
        found.append(torch.zeros_like(named[f"S{name[1:]}"]) if behind is None else named[behind].clone())
    return tuple(found)


def _start_names(rule: Rule) -> tuple[str, ...]:
    return tuple(used_chunk_states(rule, True))


# torch.compile would follow how the program of a rule is made.
_start_names._dynamo_marked_constant = True  # type: ignore[attr-defined]
