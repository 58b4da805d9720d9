"""Maps and losses as a user would define them, one line each, and their plain formulas for the oracle."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from codegen.maps import Map, abs, define, define_loss, eps, mean, rsqrt, silu, tanh, where
from trellis_ops import reference

GELU = define("gelu_tanh", lambda z: 0.5 * z * (1 + tanh(0.7978845608028654 * (z + 0.044715 * z**3))))
RMS_SILU = define("rms_silu", lambda z: silu(z) * rsqrt(mean(silu(z) ** 2) + eps))
HUBER = define_loss("huber_loss", lambda z, a: where(abs(z - a) <= 1, 0.5 * (z - a) ** 2, abs(z - a) - 0.5))
CUBIC = define_loss("cubic_smooth", lambda z, a: ((z - a) ** 2 + 1e-4) ** 1.5 / 3)

MAPS: tuple[Map, ...] = (GELU, RMS_SILU)
WRITES: tuple[Map, ...] = (GELU, RMS_SILU, HUBER, CUBIC)
NAMES = [each.name for each in WRITES]


def _rms_silu(z: torch.Tensor, epsilon: float) -> torch.Tensor:
    s = F.silu(z)
    return s / torch.sqrt((s**2).mean(dim=-1, keepdim=True) + epsilon)


def _huber(z: torch.Tensor, a: torch.Tensor, epsilon: float) -> torch.Tensor:
    return torch.where((z - a).abs() <= 1, 0.5 * (z - a) ** 2, (z - a).abs() - 0.5)


def _cubic(z: torch.Tensor, a: torch.Tensor, epsilon: float) -> torch.Tensor:
    return ((z - a) ** 2 + 1e-4) ** 1.5 / 3


reference.define("gelu_tanh", lambda z, epsilon: F.gelu(z, approximate="tanh"))
reference.define("rms_silu", _rms_silu)
reference.define_loss("huber_loss", _huber)
reference.define_loss("cubic_smooth", _cubic)
