"""The functions between the products of a block, as a model calls them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from trellis_ops.glue.registered import ADD_RMS_NORM, GATED_NORM, INPUTS, REGISTERED, RMS_NORM, SWIGLU, Glue
from trellis_ops.operators.plan import is_plain


def memory_inputs(
    shared: Tensor,
    v: Tensor | None,
    taps_q: Tensor,
    taps_k: Tensor,
    tails: Tensor,
    cu_seqlens: Tensor | None = None,
    *,
    heads: int,
    unit_keys: bool = True,
    eps: float = 1e-6,
    overwrite: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """q, k and v of a token mixer from its projections, and what the convolutions see of them later.

    q and k are a short causal depthwise convolution each of one shared projection, arXiv 2512.23852, figure 1.

    Args:
        shared: `[B, T, H D_k]`, float32 or bfloat16 for kernels on a CPU; any other type and device runs on PyTorch.
        v: `[B, T, H D_v]`, to be divided by its length per head; None if nothing is to be done with it.
        taps_q, taps_k: `[H D_k, W]`, the last tap meets the token itself; W is at least 2.
        tails: `[N, W - 1, H D_k]`, the inputs before the first token of each sequence, zeros where it begins.
        cu_seqlens: `[N + 1]`, int32 or int64, offsets of N sequences packed into `[1, T]`; None for N = B rows.
        heads: H.
        unit_keys: whether q and k are divided by their length per head.
        eps: the least that a row is divided by.
        overwrite: whether v may hold what it becomes, as nobody else reads it; only where no gradient is recorded.

    Returns:
        q and k `[B, T, H, D_k]`, v `[B, T, H, D_v]` or None, and the tails after the last tokens.

    Raises:
        ShapeError, DtypeError, DeviceMismatchError: tensors that do not fit.
        SequenceError: offsets that do not describe the tokens.
        GradientError: a second derivative is wanted.
    """
    values = [] if v is None else [v]
    into = {2: v} if overwrite and v is not None else None
    found = _call(INPUTS, (shared, *values, taps_q, taps_k, tails), cu_seqlens, heads, unit_keys, eps, into=into)
    q, k, *unit, after = found
    return q, k, unit[0] if unit else None, after


def gated_norm(y: Tensor, gate: Tensor, weight: Tensor, *, eps: float, overwrite: bool = False) -> Tensor:
    """RMSNorm(y) * gelu(gate), each head by itself, arXiv 2512.23852, figure 1.

    Args:
        y: `[..., H, D]`.
        gate: `[..., H D]`.
        weight: `[D]`, of the norm.
        eps: of the norm.
        overwrite: whether gate may hold the result, as nobody else reads it; only where no gradient is recorded.

    Returns:
        `[..., H D]`.

    Raises:
        ShapeError, DtypeError, DeviceMismatchError: tensors that do not fit.
        GradientError: a second derivative is wanted.
    """
    (mixed,) = _call(GATED_NORM, (y, gate, weight), eps, into={0: gate} if overwrite else None)
    return mixed


def swiglu_gate(gate: Tensor, up: Tensor, *, overwrite: bool = False) -> Tensor:
    """silu(gate) * up, of one shape, arXiv 2002.05202.

    Args:
        gate, up: of any shape.
        overwrite: whether gate may hold the result, as nobody else reads it; only where no gradient is recorded.

    Raises:
        ShapeError, DtypeError, DeviceMismatchError: tensors that do not fit.
        GradientError: a second derivative is wanted.
    """
    (hidden,) = _call(SWIGLU, (gate, up), into={0: gate} if overwrite else None)
    return hidden


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """x / sqrt(mean x^2 + eps) * weight, of rows `[..., F]`, arXiv 1910.07467.

    Raises:
        ShapeError, DtypeError, DeviceMismatchError: tensors that do not fit.
        GradientError: a second derivative is wanted.
    """
    (normed,) = _call(RMS_NORM, (x, weight), eps)
    return normed


def add_rms_norm(x: Tensor, more: Tensor, weight: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    """x + more, of one shape, and its `rms_norm`.

    Raises:
        As `rms_norm`.
    """
    if is_plain((x, more, weight)):
        added, normed = ADD_RMS_NORM.run((x, more, weight), eps)
        return added, normed
    added = x + more
    return added, rms_norm(added, weight, eps=eps)


def _call(
    glue: Glue, given: Sequence[Tensor], *settings: Any, into: Mapping[int, Tensor] | None = None
) -> list[Tensor]:
    if is_plain((*given, *(x for x in settings if isinstance(x, Tensor)))):
        return glue.run(given, *settings, into=into)
    found: list[Tensor] = REGISTERED[glue.name](list(given), *settings)
    return found
