"""Checks of one tensor against what the others of its call say: type, shape, device; no data is read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from codegen.errors import DeviceMismatchError, DtypeError, SequenceError, ShapeError, SizeError
from codegen.spec import MAX_DIM, MAX_SLOTS

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
"""Types that kernels take; float64 runs on the eager implementation only."""


def given(**tensors: object) -> None:
    """Refuse what is no tensor."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is {tensor!r}, but must be a torch.Tensor")


def rank(name: str, tensor: Tensor, rank: int, expected: str) -> None:
    """Refuse another number of axes."""
    if tensor.ndim != rank:
        raise ShapeError(name=name, shape=tuple(tensor.shape), expected=expected)


def of_shape(name: str, tensor: Tensor, shape: tuple[int, ...], meaning: str) -> None:
    """Refuse another shape."""
    if tensor.shape != shape:
        raise ShapeError(name=name, shape=tuple(tensor.shape), expected=f"{meaning}, here {shape}")


def sizes(*, slots: int, batch: int, heads: int, dim_k: int, dim_v: int = 1) -> None:
    """Refuse sizes that no kernel takes."""
    for name, value, most in (("D_k", dim_k, MAX_DIM), ("D_v", dim_v, MAX_DIM), ("M", slots, MAX_SLOTS)):
        if not 1 <= value <= most:
            raise SizeError(name=name, value=value, expected=f"1 to {most}")
    for name, value in (("B", batch), ("H", heads)):
        if value < 1:
            raise SizeError(name=name, value=value, expected="at least 1")


def same(first: Tensor, **others: Tensor) -> None:
    """Refuse inputs of another type, or on another device, than the first."""
    if first.dtype not in DTYPES and first.dtype != torch.float64:
        raise DtypeError(
            name="q (or w)", dtype=first.dtype, expected="float32, bfloat16, float16 (float64: eager only)"
        )
    for name, tensor in others.items():
        if tensor.dtype != first.dtype:
            raise DtypeError(name=name, dtype=tensor.dtype, expected=f"{first.dtype}, the type of q (or w)")
        if tensor.device != first.device:
            raise DeviceMismatchError(name=name, device=tensor.device, expected=first.device)


def gates(log_decay: Tensor, step_size: Tensor, shape: tuple[int, ...], letters: str, like: Tensor) -> None:
    """Refuse gates of another shape, type or device."""
    of_shape("log_decay", log_decay, shape, letters)
    if step_size.shape != shape and step_size.shape != shape[-1:]:
        raise ShapeError(name="step_size", shape=tuple(step_size.shape), expected=f"[H] or {letters}, here {shape}")
    for name, tensor in (("log_decay", log_decay), ("step_size", step_size)):
        gate(name, tensor, like)


def gate(name: str, tensor: Tensor, like: Tensor) -> None:
    """Refuse a gate that is no floating-point number, or lies on another device."""
    if not tensor.dtype.is_floating_point:
        raise DtypeError(name=name, dtype=tensor.dtype, expected="a floating-point type, best float32")
    if tensor.device != like.device:
        raise DeviceMismatchError(name=name, device=tensor.device, expected=like.device)


def state(name: str, tensor: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    """Refuse a state of another shape, type or device."""
    of_shape(name, tensor, shape, "the sizes of the other tensors")
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    if tensor.dtype != dtype:
        raise DtypeError(name=name, dtype=tensor.dtype, expected=f"{dtype}: states and codes are kept in it")
    if tensor.device != like.device:
        raise DeviceMismatchError(name=name, device=tensor.device, expected=like.device)


def rows(name: str, tensor: Tensor, count: int, like: Tensor) -> None:
    """Refuse what is no vector of whole numbers, one for each row of a call."""
    given(**{name: tensor})
    of_shape(name, tensor, (count,), "one number for each row (sequence) of the call")
    if tensor.dtype not in (torch.int32, torch.int64):
        raise DtypeError(name=name, dtype=tensor.dtype, expected="torch.int32 or torch.int64")
    if tensor.device != like.device:
        raise DeviceMismatchError(name=name, device=tensor.device, expected=like.device)


def offsets(cu_seqlens: Tensor, q: Tensor) -> int:
    """How many sequences are packed; refuses offsets that are none."""
    given(cu_seqlens=cu_seqlens)
    if q.shape[0] != 1:
        raise SequenceError(problem="was given with a batch", value=f"B = {q.shape[0]}")
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 2:
        raise SequenceError(problem="has the wrong shape", value=tuple(cu_seqlens.shape))
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise DtypeError(name="cu_seqlens", dtype=cu_seqlens.dtype, expected="torch.int32 or torch.int64")
    if cu_seqlens.device != q.device:
        raise DeviceMismatchError(name="cu_seqlens", device=cu_seqlens.device, expected=q.device)
    return int(cu_seqlens.shape[0]) - 1


def tensors_in(name: str, given: Any, count: int | None = None) -> list[Tensor]:
    """The tensors of a tuple or list that a call gives, `count` of them if it is said; else TypeError."""
    if not isinstance(given, tuple | list) or (count is not None and len(given) != count):
        many = "tensors" if count is None else f"{count} tensors"
        raise TypeError(f"{name} is {type(given).__name__}, but must be a tuple of {many}")
    for place, x in enumerate(given):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}[{place}] is {x!r}, but must be a torch.Tensor")
    return list(given)
