"""The nonlinear functions of a block beside the maps of its rule: SiLU, GELU, softplus."""

from __future__ import annotations

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Expr, exp, sigmoid


def silu(x: Expr) -> Expr:
    """x sigmoid(x)."""
    return x * sigmoid(x)


def gelu(x: Expr) -> Expr:
    """x Phi(x), Phi the distribution function of N(0, 1).

    1 - Phi(|x|) is exp(-x^2 / 2) times a polynomial in t = 1 / (1 + p |x|), Abramowitz and Stegun 7.1.26, to 1.5e-7.
    """
    size = T.abs(x) * T.float32(2**-0.5)
    t = T.float32(1) / (T.float32(1) + T.float32(0.3275911) * size)
    p = T.float32(1.061405429)
    for c in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        p = p * t + T.float32(c)
    beyond = T.float32(0.5) * p * t * exp(T.float32(0) - size * size)
    return x * T.Select(x < T.float32(0), beyond, T.float32(1) - beyond)


def softplus(x: Expr) -> Expr:
    """log(1 + exp(x)) of one number, with all of its digits where exp(x) is small."""
    power = exp(T.min(x, T.float32(20)))
    above = T.float32(1) + power
    near = T.Select(above == T.float32(1), power, T.log(above) * power / T.max(above - T.float32(1), T.float32(1e-30)))
    return T.Select(x > T.float32(20), x, near)
