"""The maps of a rule in eager PyTorch, and their closed vector-Jacobian products (arXiv 2512.23852, section 3.2).

Everything acts on the last axis, of M slots or D channels, in the type it is given (float32 or float64).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from codegen.rule import READOUT_EPS

_SMALLEST_SQUARED_NORM = 1e-12
"""The square of the smallest norm that l2_silu divides by."""


def apply_map(name: str, x: Tensor, eps: float = READOUT_EPS) -> Tensor:
    """The map called `name` of `codegen.rule.MAPS` over the last axis of x; `eps` is the one of ln_silu."""
    if name == "identity":
        return x
    if name == "softmax":
        return torch.softmax(x, dim=-1)
    s = F.silu(x)
    if name == "ln_silu":
        return F.layer_norm(s, s.shape[-1:], eps=eps)
    if name == "l2_silu":
        return s * (s * s).sum(dim=-1, keepdim=True).clamp_min(_SMALLEST_SQUARED_NORM).rsqrt()
    return s


def inner_gradient(name: str, z: Tensor, alpha: Tensor, eps: float) -> Tensor:
    """u = J_phi(z)^T (phi(z) - alpha) for the map called `name`, in closed form.

    Args:
        name: a key of `codegen.rule.MAPS`.
        z: `[..., M]`.
        alpha: the targets, broadcast against z.
        eps: the one of ln_silu.

    Returns:
        u, shaped as z. With e = phi(z) - alpha, y = phi(z) and means over the slots, it is for ln_silu
        silu'(z) (e - mean(e) - y mean(e y)) / sqrt(var + eps); ATen has all of it but silu' as one kernel.
    """
    if name == "identity":
        return z - alpha
    if name == "softmax":
        p = torch.softmax(z, dim=-1)
        e = p - alpha
        return p * (e - (e * p).sum(dim=-1, keepdim=True))
    sigma = torch.sigmoid(z)
    s = z * sigma
    if name == "ln_silu":
        e = _ln_error(s, alpha, eps)
    elif name == "l2_silu":
        e = _l2_error(s, alpha)
    else:
        e = s - alpha
    # silu' = sigma + s (1 - sigma). ATen's silu_backward would do, but cannot be differentiated again.
    return e * torch.lerp(s, s.new_ones(()), sigma)


def _ln_error(s: Tensor, alpha: Tensor, eps: float) -> Tensor:
    shape = list(s.shape[-1:])
    y, mean, rstd = torch.native_layer_norm(s, shape, None, None, eps)
    backward = torch.ops.aten.native_layer_norm_backward
    e: Tensor = backward(y - alpha, s, shape, mean, rstd, None, None, [True, False, False])[0]
    return e


def _l2_error(s: Tensor, alpha: Tensor) -> Tensor:
    squared = (s * s).sum(dim=-1, keepdim=True)
    scale = squared.clamp_min(_SMALLEST_SQUARED_NORM).rsqrt()
    y = s * scale
    e = y - alpha
    # Below the smallest norm the divisor is a constant, and the part of e along y passes unchanged.
    along = (e * y).sum(dim=-1, keepdim=True) * (squared >= _SMALLEST_SQUARED_NORM)
    return (e - y * along) * scale
