"""What a call asks for: its tensors checked against each other, and the Spec that they add up to.

Only shapes, types and devices are looked at, so that nothing waits for a GPU; `values.py` reads data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from codegen.errors import DeviceMismatchError, DtypeError, SequenceError, ShapeError, SizeError
from codegen.rule import Rule
from codegen.scalars import positive_number, whole_number
from codegen.spec import MAX_DIM, MAX_SLOTS, Problem, Spec, effective_chunk
from trellis_ops.outer_gradient import is_first_order

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
"""Types that kernels take; float64 runs on the eager implementation only."""

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
    _given(**tensors, **{name: value for name, value in optional.items() if value is not None})
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
    _given(q=q, k=k, v=v, target=target, log_decay=log_decay, step_size=step_size)
    is_first_order(outer_gradient)
    _rank("q", q, 4, "[B, T, H, D_k]")
    batch, tokens, heads, dim_k = q.shape
    if tokens < 1:
        raise SizeError(name="T", value=tokens, expected="at least 1 token (q has no tokens)")
    _shape("k", k, (batch, tokens, heads, dim_k), "[B, T, H, D_k] like q")
    _rank("v", v, 4, "[B, T, H, D_v]")
    dim_v, slots = v.shape[-1], target.shape[-1] if target.ndim == 4 else 0
    _shape("v", v, (batch, tokens, heads, dim_v), "[B, T, H, D_v] with B, T, H of q")
    _rank("target", target, 4, "[B, T, H, M]")
    _shape("target", target, (batch, tokens, heads, slots), "[B, T, H, M] with B, T, H of q")
    _gates(log_decay, step_size, (batch, tokens, heads), "[B, T, H]", q)
    _sizes(dim_k=dim_k, dim_v=dim_v, slots=slots, batch=batch, heads=heads)
    chunk = effective_chunk(whole_number("chunk_size", chunk_size), tokens)
    _same(q, k=k, v=v, target=target)
    packed = None if cu_seqlens is None else _offsets(cu_seqlens, q)
    sequences = batch if packed is None else packed
    _both_or_none("initial_state", initial_state)
    for (name, state), dim in zip(_parts(initial_state), (dim_k, dim_v), strict=True):
        if state is not None:
            _state(f"initial_state's {name}", state, (sequences, heads, slots, dim), q)
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
    _given(w=w, target=target, log_decay=log_decay, step_size=step_size)
    _rank("w", w, 4, "[B, T, H, D]")
    batch, tokens, heads, dim = w.shape
    if tokens < 1:
        raise SizeError(name="T", value=tokens, expected="at least 1 token (w has no tokens)")
    _rank("target", target, 4, "[B, T, H, M]")
    slots = target.shape[-1]
    _shape("target", target, (batch, tokens, heads, slots), "[B, T, H, M] with B, T, H of w")
    _gates(log_decay, step_size, (batch, tokens, heads), "[B, T, H]", w)
    _sizes(dim_k=dim, slots=slots, batch=batch, heads=heads)
    chunk = effective_chunk(whole_number("chunk_size", chunk_size), tokens)
    _same(w, target=target)
    if initial_state is not None:
        _given(initial_state=initial_state)
        _state("initial_state", initial_state, (batch, heads, slots, dim), w)
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
    _given(read=read, w=w, chunk_states=chunk_states, codes=codes, log_decay=log_decay, step_size=step_size)
    _rank("w", w, 4, "[B, T, H, D]")
    batch, tokens, heads, dim = w.shape
    if tokens < 1:
        raise SizeError(name="T", value=tokens, expected="at least 1 token (w has no tokens)")
    _rank("codes", codes, 4, "[B, T, H, M]")
    slots = codes.shape[-1]
    _sizes(dim_k=dim, slots=slots, batch=batch, heads=heads)
    flag("transpose", transpose)
    width, letter = (slots, "M") if transpose else (dim, "D")
    _shape("read", read, (batch, tokens, heads, width), f"[B, T, H, {letter}] with B, T, H of w")
    _same(w, read=read)
    _gates(log_decay, step_size, (batch, tokens, heads), "[B, T, H]", w)
    chunk = effective_chunk(whole_number("chunk_size", chunk_size), tokens)
    chunks = -(-tokens // chunk)
    _state("codes", codes, (batch, tokens, heads, slots), w)
    _state("chunk_states", chunk_states, (batch, chunks, heads, slots, dim), w)
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
    _given(q=q, k=k, v=v, target=target, log_decay=log_decay, step_size=step_size, S_k=s_k, S_v=s_v)
    _both_or_none("gradient_state", gradient_state)
    _rank("q", q, 3, "[B, H, D_k]")
    batch, heads, dim_k = q.shape
    _shape("k", k, (batch, heads, dim_k), "[B, H, D_k] like q")
    _rank("v", v, 3, "[B, H, D_v]")
    _rank("target", target, 3, "[B, H, M]")
    dim_v, slots = v.shape[-1], target.shape[-1]
    _shape("v", v, (batch, heads, dim_v), "[B, H, D_v] with B, H of q")
    _shape("target", target, (batch, heads, slots), "[B, H, M] with B, H of q")
    _gates(log_decay, step_size, (batch, heads), "[B, H]", q)
    _sizes(dim_k=dim_k, dim_v=dim_v, slots=slots, batch=batch, heads=heads)
    _same(q, k=k, v=v, target=target)
    for name, pair in (("state", state), ("gradient_state", gradient_state)):
        for (part, tensor), dim in zip(_parts(pair), (dim_k, dim_v), strict=True):
            if tensor is not None:
                _state(f"{name}'s {part}", tensor, (batch, heads, slots, dim), q)
    operator = "trellis_step" if all(state is None for state in gradient_state) else "trellis_step_chunked"
    problem = Problem(operator, batch, 1, heads, dim_k, dim_v, slots, 1, DTYPES.get(q.dtype, "float32"))
    return Request(Spec(_with_step_size(rule, step_size), problem), q.device, q.dtype == torch.float64)


def _with_step_size(rule: Rule, step_size: Tensor) -> Rule:
    return Rule(rule.phi, rule.link, rule.out, rule.phi_eps, step_size="head" if step_size.ndim == 1 else "token")


def _given(**tensors: object) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is {tensor!r}, but must be a torch.Tensor")


def _both_or_none(name: str, pair: tuple[object, object]) -> None:
    if any(part is not None for part in pair):
        _given(**{f"{name}'s {part}": state for part, state in _parts(pair)})


def _parts(pair: tuple[Any, Any]) -> Iterator[tuple[str, Any]]:
    """The states of a pair, each with its name."""
    return zip(("S_k", "S_v"), pair, strict=True)


def _rank(name: str, tensor: Tensor, rank: int, expected: str) -> None:
    if tensor.ndim != rank:
        raise ShapeError(name=name, shape=tuple(tensor.shape), expected=expected)


def _shape(name: str, tensor: Tensor, shape: tuple[int, ...], meaning: str) -> None:
    if tensor.shape != shape:
        raise ShapeError(name=name, shape=tuple(tensor.shape), expected=f"{meaning}, here {shape}")


def _sizes(*, slots: int, batch: int, heads: int, dim_k: int, dim_v: int = 1) -> None:
    for name, value, most in (("D_k", dim_k, MAX_DIM), ("D_v", dim_v, MAX_DIM), ("M", slots, MAX_SLOTS)):
        if not 1 <= value <= most:
            raise SizeError(name=name, value=value, expected=f"1 to {most}")
    for name, value in (("B", batch), ("H", heads)):
        if value < 1:
            raise SizeError(name=name, value=value, expected="at least 1")


def _same(first: Tensor, **others: Tensor) -> None:
    if first.dtype not in DTYPES and first.dtype != torch.float64:
        raise DtypeError(
            name="q (or w)", dtype=first.dtype, expected="float32, bfloat16, float16 (float64: eager only)"
        )
    for name, tensor in others.items():
        if tensor.dtype != first.dtype:
            raise DtypeError(name=name, dtype=tensor.dtype, expected=f"{first.dtype}, the type of q (or w)")
        if tensor.device != first.device:
            raise DeviceMismatchError(name=name, device=tensor.device, expected=first.device)


def _gates(log_decay: Tensor, step_size: Tensor, shape: tuple[int, ...], letters: str, like: Tensor) -> None:
    _shape("log_decay", log_decay, shape, letters)
    if step_size.shape != shape and step_size.shape != shape[-1:]:
        raise ShapeError(name="step_size", shape=tuple(step_size.shape), expected=f"[H] or {letters}, here {shape}")
    for name, tensor in (("log_decay", log_decay), ("step_size", step_size)):
        if not tensor.dtype.is_floating_point:
            raise DtypeError(name=name, dtype=tensor.dtype, expected="a floating-point type, best float32")
        if tensor.device != like.device:
            raise DeviceMismatchError(name=name, device=tensor.device, expected=like.device)


def _state(name: str, tensor: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    _shape(name, tensor, shape, "the sizes of the other tensors")
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    if tensor.dtype != dtype:
        raise DtypeError(name=name, dtype=tensor.dtype, expected=f"{dtype}: states and codes are kept in it")
    if tensor.device != like.device:
        raise DeviceMismatchError(name=name, device=tensor.device, expected=like.device)


def _offsets(cu_seqlens: Tensor, q: Tensor) -> int:
    _given(cu_seqlens=cu_seqlens)
    if q.shape[0] != 1:
        raise SequenceError(problem="was given with a batch", value=f"B = {q.shape[0]}")
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 2:
        raise SequenceError(problem="has the wrong shape", value=tuple(cu_seqlens.shape))
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise DtypeError(name="cu_seqlens", dtype=cu_seqlens.dtype, expected="torch.int32 or torch.int64")
    if cu_seqlens.device != q.device:
        raise DeviceMismatchError(name="cu_seqlens", device=cu_seqlens.device, expected=q.device)
    return int(cu_seqlens.shape[0]) - 1
