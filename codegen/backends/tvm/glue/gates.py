"""The slopes of the gates of a block, whose values are in `codegen.backends.tvm.layer.gates`."""

from __future__ import annotations

import math

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Expr, exp, sigmoid
from codegen.backends.tvm.layer.gates import gelu

_NEAR_ZERO = 1e-30
"""gelu(x) / x is the distribution function of N(0, 1) with all of its digits, but for an x that leaves it none."""


def silu_slope(x: Expr) -> Expr:
    """silu'(x) = s (1 + x (1 - s)), s = sigmoid(x)."""
    s = sigmoid(x)
    return s * (T.float32(1) + x * (T.float32(1) - s))


def gelu_slope(x: Expr) -> Expr:
    """gelu'(x) = Phi(x) + x phi(x), Phi and phi of N(0, 1)."""
    near = T.abs(x) < T.float32(_NEAR_ZERO)
    distribution = T.Select(near, T.float32(0.5), gelu(x) / T.Select(near, T.float32(1), x))
    return distribution + x * exp(T.float32(-0.5) * x * x) * T.float32(1 / math.sqrt(2 * math.pi))
