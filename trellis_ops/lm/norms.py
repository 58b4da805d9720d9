"""The norms of a residual stream: by the kernels of `trellis_ops.glue` where they stand for torch's module."""

from __future__ import annotations

from torch import Tensor, nn

from trellis_ops import glue


def normed(norm: nn.Module, x: Tensor) -> Tensor:
    """norm(x)."""
    if glue.is_plain_norm(norm) and glue.replaces_modules(x, norm.weight):
        return glue.rms_norm(x, norm.weight, eps=norm.eps)
    found: Tensor = norm(x)
    return found


def added_and_normed(norm: nn.Module, x: Tensor, more: Tensor) -> tuple[Tensor, Tensor]:
    """x + more, and its norm."""
    if glue.is_plain_norm(norm) and glue.replaces_modules(x, more, norm.weight):
        return glue.add_rms_norm(x, more, norm.weight, eps=norm.eps)
    x = x + more
    return x, norm(x)
