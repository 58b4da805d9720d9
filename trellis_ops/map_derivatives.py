"""First and second derivatives of the maps, in closed form; numbers are the equations of docs/backward.md.

Everything acts on the last axis, of M slots or D channels, in the type it is given (float32 or float64).
"""

from __future__ import annotations

import torch
from torch import Tensor

from codegen.rule import READOUT_EPS

_SMALLEST_SQUARED_NORM = 1e-12
"""The square of the smallest norm that l2_silu divides by."""


def pull_back(name: str, x: Tensor, bar: Tensor) -> Tensor:
    """J(x)^T bar of the map called `name` as `link` or `out` (B14); x and bar are `[..., M]`."""
    if name == "identity":
        return bar
    if name == "softmax":
        return _softmax_jacobian(torch.softmax(x, dim=-1), bar)
    s, slope, _ = _silu(x)
    if name == "silu":
        return slope * bar
    _, rsd, unit = _normalised(name, s, READOUT_EPS)
    return slope * _normaliser_jacobian(name, unit, rsd, bar, _average(name, unit * bar))


def prepare_write(name: str, z: Tensor, alpha: Tensor, eps: float) -> tuple[Tensor, ...]:
    """What `push_write` needs of the write u = J(z)^T (phi(z) - alpha), whichever cotangent comes.

    Args:
        name: a key of `codegen.rule.MAPS`.
        z, alpha: `[..., M]`, broadcast against each other.
        eps: the one of ln_silu.
    """
    if name == "identity":
        return ()
    if name == "softmax":
        p = torch.softmax(z, dim=-1)
        e = p - alpha
        return p, e, (p * e).sum(dim=-1, keepdim=True)
    s, slope, bend = _silu(z)
    if name == "silu":
        return slope, slope * slope + bend * (s - alpha)
    y, rsd, unit = _normalised(name, s, eps)
    keep = _average(name, alpha * y)
    if name == "ln_silu":
        shrunk = eps * rsd * rsd
        keep = keep + shrunk
        n = (y * keep - alpha + alpha.mean(dim=-1, keepdim=True)) * rsd
    else:
        # Below the smallest norm the divisor is a constant, and e = y - alpha passes as it is.
        shrunk = torch.zeros_like(rsd)
        keep = torch.where((unit != 0).any(dim=-1, keepdim=True), keep, 1.0)
        n = (y * keep - alpha) * rsd
    return slope, unit, rsd, n, keep, shrunk * rsd, bend * n


def push_write(name: str, parts: tuple[Tensor, ...], bar_u: Tensor) -> tuple[Tensor, Tensor]:
    """(bar z, J bar_u) of a write that `prepare_write` saw; bar alpha is the second, negated (B8, B9, B15 to B18)."""
    if name == "identity":
        return bar_u, bar_u
    if name == "softmax":
        p, e, pe = parts
        pushed = _softmax_jacobian(p, bar_u)
        along = (p * bar_u).sum(dim=-1, keepdim=True)
        return _softmax_jacobian(p, pushed + bar_u * (e - pe) - along * e), pushed
    if name == "silu":
        slope, curvature = parts
        return curvature * bar_u, slope * bar_u
    slope, unit, rsd, n, keep, shrunk, bend_n = parts
    b = slope * bar_u
    along = _average(name, unit * b)
    pushed = _normaliser_jacobian(name, unit, rsd, b, along)
    across = _average(name, n * b) + shrunk * along
    return slope * rsd * (keep * pushed - unit * across - along * n) + bend_n * bar_u, pushed


def _silu(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """silu and its first two derivatives."""
    sigma = torch.sigmoid(x)
    s = x * sigma
    rest = 1 - sigma
    slope = sigma + s * rest
    return s, slope, rest * (slope + sigma * (1 - s))


def _normalised(name: str, s: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """y, 1 / its divisor, and the direction that the Jacobian removes: y, or 0 where the divisor is a constant."""
    if name == "ln_silu":
        centred = s - s.mean(dim=-1, keepdim=True)
        rsd = ((centred * centred).mean(dim=-1, keepdim=True) + eps).rsqrt()
        return centred * rsd, rsd, centred * rsd
    squared = (s * s).sum(dim=-1, keepdim=True)
    rsd = squared.clamp_min(_SMALLEST_SQUARED_NORM).rsqrt()
    y = s * rsd
    return y, rsd, y * (squared >= _SMALLEST_SQUARED_NORM)


def _average(name: str, x: Tensor) -> Tensor:
    return x.mean(dim=-1, keepdim=True) if name == "ln_silu" else x.sum(dim=-1, keepdim=True)


def _normaliser_jacobian(name: str, unit: Tensor, rsd: Tensor, x: Tensor, along: Tensor) -> Tensor:
    """N x (B14), symmetric in its two sides; `along` is the average of unit * x."""
    centred = x - x.mean(dim=-1, keepdim=True) if name == "ln_silu" else x
    return (centred - unit * along) * rsd


def _softmax_jacobian(p: Tensor, x: Tensor) -> Tensor:
    return p * (x - (p * x).sum(dim=-1, keepdim=True))
