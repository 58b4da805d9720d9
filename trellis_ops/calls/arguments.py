"""What a call asks for: its tensors checked against each other, and the Spec that they add up to.

Only shapes, types and devices are looked at, so that nothing waits for a GPU; `values.py` reads data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from codegen.errors import SizeError
from codegen.rule import Rule
from codegen.scalars import positive_number, whole_number
from codegen.spec import Problem, Spec, effective_chunk
from trellis_ops.calls import checks
from trellis_ops.calls.checks import DTYPES
from trellis_ops.outer_gradient import is_first_order

Pair = tuple[Tensor, Tensor]

LONGEST_CHUNK = 2**62
"""A longer chunk is cut to this, which torch can still pass on; no sequence is as long."""


@dataclass(frozen=True)
class Request:
    """A checked call.

    Attributes:
        spec: what it computes; for float64 the spec of the same call in float32.
        device: where its tensors are.
        float64: whether the inputs are float64, which only the eager implementation takes.
        packed: how many sequences are packed into B = 1; None for a batch.
    """

    spec: Spec
    device: torch.device
    float64: bool
    packed: int | None = None


def numbers_of_call(phi_eps: object, chunk_size: object = 1) -> tuple[float, int]:
    """`phi_eps` as a float and `chunk_size` as an int.

    Raises:
        NumberTypeError, SizeError: what they cannot be.
    """
    return positive_number("phi_eps", phi_eps), min(whole_number("chunk_size", chunk_size), LONGEST_CHUNK)


def pair_of_states(name: str, states: object) -> tuple[Any, Any]:
    """The two states of a pair; whether both are there, and their shapes, is for a request to check.

    Raises:
        TypeError: it is no tuple or list of two, or one of them is no tensor.
    """
    if not isinstance(states, tuple | list) or len(states) != 2:
        given = f"of length {len(states)}" if isinstance(states, tuple | list) else f"a {type(states).__name__}"
        raise TypeError(f"{name} is {given}, but must be a pair (S_k, S_v) of torch.Tensor")
    s_k, s_v = states
    for part, state in _parts((s_k, s_v)):
        if state is not None and not isinstance(state, Tensor):
            raise TypeError(f"{name}'s {part} is {state!r}, but must be a torch.Tensor")
    return s_k, s_v


def require_types(
    tensors: Mapping[str, object], optional: Mapping[str, object], names: Mapping[str, object], implementation: object
) -> None:
    """Refuse what torch's dispatcher would refuse by a message about a schema.

    Args:
        tensors: arguments that are tensors.
        optional: those that may be None instead.
        names: those that are texts.
        implementation: a text or None.

    Raises:
        TypeError: with the name of the argument.
    """
    checks.given(**tensors, **{name: value for name, value in optional.items() if value is not None})
    for name, value in (dict(names) if implementation is None else {**names, "implementation": implementation}).items():
        if not isinstance(value, str):
            raise TypeError(f"{name} is {value!r}, but must be a str")


def flag(name: str, value: object) -> bool:
    """`value`, True or False.

    Raises:
        TypeError: it is anything else.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}, but must be True or False")
    return value


def attention_request(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    target: Tensor,
    log_decay: Tensor,
    step_size: Tensor,
    initial_state: tuple[Tensor | None, Tensor | None],
    cu_seqlens: Tensor | None,
    rule: Rule,
    chunk_size: int,
    outer_gradient: str,
) -> Request:
    """Check the arguments of `trellis_attention`.

    Raises:
        ShapeError, DtypeError, DeviceMismatchError, SequenceError, SizeError, ValueError: as their names say.
        TypeError: None, or what is no tensor, in place of a tensor.
    """
    checks.given(q=q, k=k, v=v, target=target, log_decay=log_decay, step_size=step_size)
    is_first_order(outer_gradient)
    checks.rank("q", q, 4, "[B, T, H, D_k]")
    batch, tokens, heads, dim_k = q.shape
    if tokens < 1:
        raise SizeError(name="T", value=tokens, expected="at least 1 token (q has no tokens)")
    checks.of_shape("k", k, (batch, tokens, heads, dim_k), "[B, T, H, D_k] like q")
    checks.rank("v", v, 4, "[B, T, H, D_v]")
    dim_v, slots = v.shape[-1], target.shape[-1] if target.ndim == 4 else 0
    checks.of_shape("v", v, (batch, tokens, heads, dim_v), "[B, T, H, D_v] with B, T, H of q")
    checks.rank("target", target, 4, "[B, T, H, M]")
    checks.of_shape("target", target, (batch, tokens, heads, slots), "[B, T, H, M] with B, T, H of q")
    checks.gates(log_decay, step_size, (batch, tokens, heads), "[B, T, H]", q)
    checks.sizes(dim_k=dim_k, dim_v=dim_v, slots=slots, batch=batch, heads=heads)
    chunk = effective_chunk(whole_number("chunk_size", chunk_size), tokens)
    checks.same(q, k=k, v=v, target=target)
    packed = None if cu_seqlens is None else checks.offsets(cu_seqlens, q)
    sequences = batch if packed is None else packed
    _both_or_none("initial_state", initial_state)
    for (name, state), dim in zip(_parts(initial_state), (dim_k, dim_v), strict=True):
        if state is not None:
            checks.state(f"initial_state's {name}", state, (sequences, heads, slots, dim), q)
    problem = Problem(
        "trellis_attention", batch, tokens, heads, dim_k, dim_v, slots, chunk, DTYPES.get(q.dtype, "float32")
    )
    return Request(Spec(_with_step_size(rule, step_size), problem), q.device, q.dtype == torch.float64, packed)


def update_request(
    w: Tensor,
    target: Tensor,
    log_decay: Tensor,
    step_size: Tensor,
    initial_state: Tensor | None,
    rule: Rule,
    chunk_size: int,
) -> Request:
    """Check the arguments of `memory_update`; raises as `attention_request`."""
    checks.given(w=w, target=target, log_decay=log_decay, step_size=step_size)
    checks.rank("w", w, 4, "[B, T, H, D]")
    batch, tokens, heads, dim = w.shape
    if tokens < 1:
        raise SizeError(name="T", value=tokens, expected="at least 1 token (w has no tokens)")
    checks.rank("target", target, 4, "[B, T, H, M]")
    slots = target.shape[-1]
    checks.of_shape("target", target, (batch, tokens, heads, slots), "[B, T, H, M] with B, T, H of w")
    checks.gates(log_decay, step_size, (batch, tokens, heads), "[B, T, H]", w)
    checks.sizes(dim_k=dim, slots=slots, batch=batch, heads=heads)
    chunk = effective_chunk(whole_number("chunk_size", chunk_size), tokens)
    checks.same(w, target=target)
    if initial_state is not None:
        checks.given(initial_state=initial_state)
        checks.state("initial_state", initial_state, (batch, heads, slots, dim), w)
    problem = Problem("memory_update", batch, tokens, heads, dim, dim, slots, chunk, DTYPES.get(w.dtype, "float32"))
    return Request(Spec(_with_step_size(rule, step_size), problem), w.device, w.dtype == torch.float64)


def readout_request(
    read: Tensor,
    w: Tensor,
    chunk_states: Tensor,
    codes: Tensor,
    log_decay: Tensor,
    step_size: Tensor,
    chunk_size: int,
    transpose: bool,
) -> Request:
    """Check the arguments of `memory_readout`; raises as `attention_request`."""
    checks.given(read=read, w=w, chunk_states=chunk_states, codes=codes, log_decay=log_decay, step_size=step_size)
    checks.rank("w", w, 4, "[B, T, H, D]")
    batch, tokens, heads, dim = w.shape
    if tokens < 1:
        raise SizeError(name="T", value=tokens, expected="at least 1 token (w has no tokens)")
    checks.rank("codes", codes, 4, "[B, T, H, M]")
    slots = codes.shape[-1]
    checks.sizes(dim_k=dim, slots=slots, batch=batch, heads=heads)
    flag("transpose", transpose)
    width, letter = (slots, "M") if transpose else (dim, "D")
    checks.of_shape("read", read, (batch, tokens, heads, width), f"[B, T, H, {letter}] with B, T, H of w")
    checks.same(w, read=read)
    checks.gates(log_decay, step_size, (batch, tokens, heads), "[B, T, H]", w)
    chunk = effective_chunk(whole_number("chunk_size", chunk_size), tokens)
    chunks = -(-tokens // chunk)
    checks.state("codes", codes, (batch, tokens, heads, slots), w)
    checks.state("chunk_states", chunk_states, (batch, chunks, heads, slots, dim), w)
    operator = "memory_readout_transposed" if transpose else "memory_readout"
    problem = Problem(operator, batch, tokens, heads, dim, dim, slots, chunk, DTYPES.get(w.dtype, "float32"))
    return Request(Spec(_with_step_size(Rule(), step_size), problem), w.device, w.dtype == torch.float64)


def step_request(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    target: Tensor,
    log_decay: Tensor,
    step_size: Tensor,
    state: Pair,
    gradient_state: tuple[Tensor | None, Tensor | None],
    rule: Rule,
) -> Request:
    """Check the arguments of `trellis_step`; raises as `attention_request`."""
    s_k, s_v = state
    checks.given(q=q, k=k, v=v, target=target, log_decay=log_decay, step_size=step_size, S_k=s_k, S_v=s_v)
    _both_or_none("gradient_state", gradient_state)
    checks.rank("q", q, 3, "[B, H, D_k]")
    batch, heads, dim_k = q.shape
    checks.of_shape("k", k, (batch, heads, dim_k), "[B, H, D_k] like q")
    checks.rank("v", v, 3, "[B, H, D_v]")
    checks.rank("target", target, 3, "[B, H, M]")
    dim_v, slots = v.shape[-1], target.shape[-1]
    checks.of_shape("v", v, (batch, heads, dim_v), "[B, H, D_v] with B, H of q")
    checks.of_shape("target", target, (batch, heads, slots), "[B, H, M] with B, H of q")
    checks.gates(log_decay, step_size, (batch, heads), "[B, H]", q)
    checks.sizes(dim_k=dim_k, dim_v=dim_v, slots=slots, batch=batch, heads=heads)
    checks.same(q, k=k, v=v, target=target)
    for name, pair in (("state", state), ("gradient_state", gradient_state)):
        for (part, tensor), dim in zip(_parts(pair), (dim_k, dim_v), strict=True):
            if tensor is not None:
                checks.state(f"{name}'s {part}", tensor, (batch, heads, slots, dim), q)
    operator = "trellis_step" if all(state is None for state in gradient_state) else "trellis_step_chunked"
    problem = Problem(operator, batch, 1, heads, dim_k, dim_v, slots, 1, DTYPES.get(q.dtype, "float32"))
    return Request(Spec(_with_step_size(rule, step_size), problem), q.device, q.dtype == torch.float64)


def _with_step_size(rule: Rule, step_size: Tensor) -> Rule:
    return Rule(rule.phi, rule.link, rule.out, rule.phi_eps, step_size="head" if step_size.ndim == 1 else "token")


def _both_or_none(name: str, pair: tuple[object, object]) -> None:
    if any(part is not None for part in pair):
        checks.given(**{f"{name}'s {part}": state for part, state in _parts(pair)})


def _parts(pair: tuple[Any, Any]) -> Iterator[tuple[str, Any]]:
    """The states of a pair, each with its name."""
    return zip(("S_k", "S_v"), pair, strict=True)
