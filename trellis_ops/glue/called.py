"""A checked call between the products of a block: what its kernels take and give, and in which shapes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from codegen.errors import DeviceMismatchError, DtypeError, ShapeError
from codegen.input_maps import FEWEST_TAPS, MOST_TAPS, InputMaps
from trellis_ops.calls import checks
from trellis_ops.dispatch.glue import Sizes

Shape = tuple[int, ...]

_MOST_OFFSETS = 256


@dataclass(frozen=True)
class Called:
    """A checked call.

    Attributes:
        views: the shapes of its tensors, as kernels have them.
        results: the shapes of what it gives.
        result_views: the same, as kernels have them.
        sizes, inputs: what the kernel is compiled for; None where there is no kernel.
    """

    views: tuple[Shape, ...]
    results: tuple[Shape, ...]
    result_views: tuple[Shape, ...]
    sizes: Sizes | None
    inputs: InputMaps | None = None


def memory_inputs(given: Sequence[Tensor], cu_seqlens: Tensor | None, heads: int, unit_keys: bool) -> Called:
    """A call of `trellis_ops.glue.memory_inputs`, with v among its tensors or without.

    Raises:
        ShapeError, DtypeError, DeviceMismatchError, SequenceError: tensors that do not fit.
    """
    shared, *values, taps_q, taps_k, tails = given
    _same(shared=shared, taps_q=taps_q, taps_k=taps_k, tails=tails)
    checks.rank("shared", shared, 3, "[B, T, H D_k]")
    checks.rank("taps_q", taps_q, 2, "[H D_k, W]")
    (batch, tokens, keys), taps = shared.shape, taps_q.shape[1]
    dim_k = _of_heads("shared", shared, heads)
    sequences = batch if cu_seqlens is None else checks.offsets(cu_seqlens, shared)
    if taps < FEWEST_TAPS:
        raise ShapeError(name="taps_q", shape=tuple(taps_q.shape), expected=f"at least {FEWEST_TAPS} taps")
    checks.of_shape("taps_q", taps_q, (keys, taps), "[H D_k, W]")
    checks.of_shape("taps_k", taps_k, (keys, taps), "[H D_k, W]")
    checks.of_shape("tails", tails, (sequences, taps - 1, keys), "[N, W - 1, H D_k]")
    dims, rows = [dim_k], batch * tokens
    for v in values:
        _same(shared=shared, v=v)
        checks.of_shape("v", v, (batch, tokens, v.shape[-1]), "[B, T, H D_v]")
        dims.append(_of_heads("v", v, heads))
    of_taps, of_tails = (heads, dim_k, taps), (sequences, taps - 1, heads, dim_k)
    made = [dim_k, *dims]
    return Called(
        (*((rows, heads, dim) for dim in dims), of_taps, of_taps, of_tails),
        (*((batch, tokens, heads, dim) for dim in made), tuple(tails.shape)),
        (*((rows, heads, dim) for dim in made), of_tails),
        Sizes(batch, tokens, heads, dim_k, dims[-1]) if taps <= MOST_TAPS else None,
        InputMaps(taps, unit_keys, bool(values)) if taps <= MOST_TAPS else None,
    )


def gated_norm(given: Sequence[Tensor]) -> Called:
    """A call of `trellis_ops.glue.gated_norm`.

    Raises:
        ShapeError, DtypeError, DeviceMismatchError: tensors that do not fit.
    """
    y, gate, weight = given
    _same(y=y, gate=gate, weight=weight)
    if y.ndim < 2:
        raise ShapeError(name="y", shape=tuple(y.shape), expected="[..., H, D]")
    *outer, heads, dim = y.shape
    checks.of_shape("gate", gate, (*outer, heads * dim), "[..., H D]")
    checks.of_shape("weight", weight, (dim,), "[D]")
    rows = _product(outer)
    whole = (rows, heads, dim)
    return Called((whole, whole, (dim,)), (tuple(gate.shape),), (whole,), Sizes(1, rows, heads, dim, dim))


def swiglu_gate(given: Sequence[Tensor]) -> Called:
    """A call of `trellis_ops.glue.swiglu_gate`.

    Raises:
        ShapeError, DtypeError, DeviceMismatchError: tensors that do not fit.
    """
    gate, up = given
    _same(gate=gate, up=up)
    if gate.ndim < 1:
        raise ShapeError(name="gate", shape=tuple(gate.shape), expected="[..., F]")
    checks.of_shape("up", up, tuple(gate.shape), "that of gate")
    *outer, features = gate.shape
    rows = _product(outer)
    whole = (rows, features)
    return Called((whole, whole), (tuple(gate.shape),), (whole,), Sizes(1, rows, features, 1, 1))


def rms_norm(given: Sequence[Tensor]) -> Called:
    """A call of `trellis_ops.glue.rms_norm`, or of `add_rms_norm` if there are two tensors of rows.

    Raises:
        ShapeError, DtypeError, DeviceMismatchError: tensors that do not fit.
    """
    x, *more, weight = given
    _same(x=x, weight=weight)
    if x.ndim < 1:
        raise ShapeError(name="x", shape=tuple(x.shape), expected="[..., F]")
    for each in more:
        _same(x=x, more=each)
        checks.of_shape("more", each, tuple(x.shape), "that of x")
    *outer, features = x.shape
    checks.of_shape("weight", weight, (features,), "[F]")
    rows, count = _product(outer), 1 + len(more)
    whole = (rows, features)
    return Called(
        (*count * (whole,), (features,)),
        count * (tuple(x.shape),),
        count * (whole,),
        Sizes(1, rows, features, 1, 1),
    )


@functools.lru_cache(maxsize=_MOST_OFFSETS)
def even_offsets(batch: int, tokens: int) -> Tensor:
    """Those of `batch` sequences of `tokens` tokens, which nobody writes to."""
    return torch.arange(batch + 1, dtype=torch.int32, device="cpu") * tokens


@functools.lru_cache(maxsize=_MOST_OFFSETS)
def one_number(value: float) -> Tensor:
    """A tensor of one float32, which nobody writes to."""
    return torch.tensor([value], dtype=torch.float32, device="cpu")


def _same(**tensors: Tensor) -> None:
    """Refuse what is no tensor of floating point, and another type or device than that of the first."""
    checks.given(**tensors)
    (name, first), *others = tensors.items()
    if not first.dtype.is_floating_point:
        raise DtypeError(name=name, dtype=first.dtype, expected="a floating-point type")
    for other, tensor in others:
        if tensor.dtype != first.dtype:
            raise DtypeError(name=other, dtype=tensor.dtype, expected=f"{first.dtype}, the type of {name}")
        if tensor.device != first.device:
            raise DeviceMismatchError(name=other, device=tensor.device, expected=first.device)


def _of_heads(name: str, tensor: Tensor, heads: int) -> int:
    width = tensor.shape[-1]
    if heads < 1 or width % heads:
        raise ShapeError(name=name, shape=tuple(tensor.shape), expected=f"a width that is a multiple of H = {heads}")
    return width // heads


def _product(sizes: Sequence[int]) -> int:
    found = 1
    for size in sizes:
        found *= size
    return found
