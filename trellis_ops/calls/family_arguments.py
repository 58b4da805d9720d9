"""What a call of any rule asks for: its tensors checked against the record, and the Spec that they add up to.

Only shapes, types and devices are looked at, so that nothing waits for a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from codegen.errors import RuleError, ShapeError, SizeError
from codegen.recurrence.of_rule import used_chunk_states
from codegen.recurrence.tensors import TOKEN, Given, states, tensors
from codegen.rule import Rule
from codegen.scalars import whole_number
from codegen.spec import CHUNKED_STEP, POOL_OPERATOR, Problem, Spec, effective_chunk
from trellis_ops.calls import checks
from trellis_ops.calls.arguments import Request
from trellis_ops.calls.checks import DTYPES
from trellis_ops.outer_gradient import is_first_order

LONGEST_POOLED_CHUNK = 2**30
"""Positions in a pool are counted in 32 bits."""

_LETTERS = {"dim_k": "D_k", "dim_v": "D_v", "slots": "M", "window": "c - 1"}


def attention_request(
    rule: Rule,
    given: Sequence[Tensor],
    initial: Sequence[Tensor],
    cu_seqlens: Tensor | None,
    chunk_size: int,
    outer_gradient: str,
    keeps: bool = False,
) -> Request:
    """Check a call of `memory_attention`.

    Args:
        rule: of the call.
        given: in the order of `codegen.recurrence.tensors.tensors(rule)`.
        initial: in the order of its states, or none.
        cu_seqlens, chunk_size, outer_gradient: of the call.
        keeps: whether its gradient is wanted.

    Raises:
        ShapeError, DtypeError, DeviceMismatchError, SequenceError, SizeError, RuleError, ValueError: as they say.
    """
    first_order = is_first_order(outer_gradient)
    batch, tokens, heads = _leading(given[0], 4, "[B, T, H, D_k]")
    if tokens < 1:
        raise SizeError(name="T", value=tokens, expected="at least 1 token (q has no tokens)")
    sizes = _sizes(rule, given, (batch, tokens, heads))
    chunk = effective_chunk(whole_number("chunk_size", chunk_size), tokens)
    if rule.decay_first and chunk > 1:
        reason = f"z is taken at the memory decayed by the token's own gate; chunk_size must be 1, not {chunk_size}"
        raise RuleError(field="decay_first", value=True, reason=reason)
    packed = None if cu_seqlens is None else checks.offsets(cu_seqlens, given[0])
    sequences = batch if packed is None else packed
    _check_states("initial_state", states(rule), initial, (sequences, heads), sizes, given[0])
    direction = ("backward_first_order" if first_order else "backward") if keeps else "forward"
    problem = Problem(
        *("memory_attention", batch, tokens, heads, sizes["dim_k"], sizes["dim_v"], sizes["slots"], chunk),
        *(DTYPES.get(given[0].dtype, "float32"), direction),
    )
    return Request(Spec(rule, problem), given[0].device, given[0].dtype == torch.float64, packed)


def step_request(rule: Rule, given: Sequence[Tensor], state: Sequence[Tensor], starts: Sequence[Tensor]) -> Request:
    """Check a call of `memory_step`; raises as `attention_request`.

    Args:
        rule: of the call.
        given: as in `attention_request`, without T.
        state: in the order of its states.
        starts: in the order of `used_chunk_states`, or none.
    """
    batch, heads = _leading(given[0], 3, "[B, H, D_k]")
    sizes = _sizes(rule, given, (batch, heads))
    _check_states("state", states(rule), state, (batch, heads), sizes, given[0], needed=True)
    _check_states("chunk_state", used_chunk_states(rule, True), starts, (batch, heads), sizes, given[0])
    if rule.decay_first and starts:
        raise RuleError(field="decay_first", value=True, reason="it is exact only; give chunk_state=None")
    problem = Problem(
        *(CHUNKED_STEP if starts else "memory_step", batch, 1, heads, sizes["dim_k"], sizes["dim_v"], sizes["slots"]),
        *(1, DTYPES.get(given[0].dtype, "float32")),
    )
    return Request(Spec(rule, problem), given[0].device, given[0].dtype == torch.float64)


def pool_request(
    rule: Rule,
    given: Sequence[Tensor],
    pools: tuple[Sequence[Tensor], Sequence[Tensor]],
    first: Sequence[Tensor],
    rows: tuple[Tensor, Tensor],
    cu_seqlens: Tensor | None,
    chunk_size: int,
) -> Request:
    """Check a call on states in a pool; raises as `attention_request`.

    Args:
        rule: of the call.
        given: as in `attention_request`, or without T.
        pools: those of its states, and those of `used_chunk_states`, which a chunk of several tokens needs.
        first: the states that fresh rows start from, in the order of its states, or none.
        rows: state_indices and positions.
        cu_seqlens, chunk_size: of the call.
    """
    q = given[0]
    step = q.ndim == 3
    leading = _leading(q, 3 if step else 4, "[B, H, D_k] or [B, T, H, D_k]")
    batch, tokens, heads = (leading[0], 1, leading[1]) if step else leading
    if tokens < 1:
        raise SizeError(name="T", value=tokens, expected="at least 1 token (q has no tokens)")
    sizes = _sizes(rule, given, leading)
    chunk = whole_number("chunk_size", chunk_size, LONGEST_POOLED_CHUNK)
    if rule.decay_first and chunk > 1:
        reason = f"z is taken at the memory decayed by the token's own gate; chunk_size must be 1, not {chunk_size}"
        raise RuleError(field="decay_first", value=True, reason=reason)
    packed = None if cu_seqlens is None else checks.offsets(cu_seqlens, q)
    state, starts = pools
    capacity = state[0].shape[0] if state and state[0].ndim else 0
    _check_states("state", states(rule), state, (capacity, heads), sizes, q, needed=True)
    kept = used_chunk_states(rule, chunk > 1)
    _check_states("gradient_state (chunk_state)", kept, starts, (capacity, heads), sizes, q, needed=True)
    _check_states("first_state", states(rule), first, (heads,), sizes, q)
    for name, x in zip(("state_indices", "positions"), rows, strict=True):
        checks.rows(name, x, batch if packed is None else packed, q)
    problem = Problem(
        *(POOL_OPERATOR, batch, tokens, heads, sizes["dim_k"], sizes["dim_v"], sizes["slots"], chunk),
        DTYPES.get(q.dtype, "float32"),
    )
    return Request(Spec(rule, problem), q.device, q.dtype == torch.float64, packed)


def _leading(q: Tensor, rank: int, expected: str) -> tuple[int, ...]:
    if q.ndim != rank:
        raise ShapeError(name="q", shape=tuple(q.shape), expected=expected)
    return tuple(q.shape[:-1])


def _sizes(rule: Rule, given: Sequence[Tensor], rows: tuple[int, ...]) -> dict[str, int]:
    """The sizes of the axes, with every tensor checked against them."""
    named = dict(zip((each.name for each in tensors(rule)), given, strict=True))
    v, target = named["v"], named.get("target", named["v"])
    for name, x in (("v", v), ("target", target)):
        if x.ndim != len(rows) + 1:
            raise ShapeError(name=name, shape=tuple(x.shape), expected=f"{len(rows) + 1} axes, as q has")
    sizes = {"dim_k": named["q"].shape[-1], "dim_v": v.shape[-1], "slots": target.shape[-1]}
    checks.sizes(batch=rows[0], heads=rows[-1], **sizes)
    sizes["window"] = rule.window - 1
    inputs = {each.name: named[each.name] for each in tensors(rule) if each.is_input}
    checks.same(named["q"], **{name: x for name, x in inputs.items() if name != "q"})
    for each in tensors(rule):
        _check_tensor(each, named[each.name], rows, sizes, named["q"])
    return sizes


def _check_tensor(each: Given, x: Tensor, rows: tuple[int, ...], sizes: Mapping[str, int], q: Tensor) -> None:
    leading = rows if each.per == TOKEN else rows[-1:]
    shape = (*leading, *(sizes[axis] for axis in each.axes))
    letters = (("B", "T", "H") if len(rows) == 3 else ("B", "H")) if each.per == TOKEN else ("H",)
    written = f"[{', '.join((*letters, *(_LETTERS[axis] for axis in each.axes)))}]"
    if x.shape != shape:
        raise ShapeError(name=each.name, shape=tuple(x.shape), expected=f"{written}, here {shape}")
    if not each.is_input:
        checks.gate(each.name, x, q)


def _check_states(
    name: str,
    axes: Mapping[str, tuple[str, ...]],
    given: Sequence[Tensor],
    leading: tuple[int, ...],
    sizes: Mapping[str, int],
    q: Tensor,
    needed: bool = False,
) -> None:
    if not given and not needed:
        return
    if len(given) != len(axes):
        raise TypeError(f"{name} has {len(given)} tensors, but must be a tuple of {len(axes)}: {', '.join(axes)}")
    for (part, its), x in zip(axes.items(), given, strict=True):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}'s {part} is {x!r}, but must be a torch.Tensor")
        checks.state(f"{name}'s {part}", x, (*leading, *(sizes[axis] for axis in its)), q)
