"""Expressions of one number that TVM has not, or not as kernels need them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from tvm.script import tirx as T

Buffer: TypeAlias = Any
"""A buffer of TVMScript: a tensor of the call, or scratch."""

Expr: TypeAlias = Any
"""An expression of TVMScript, or a number of Python where it is known while the kernel is parsed."""


def extent(buffer: Buffer, axis: int) -> int:
    """The size of an axis that is known while the kernel is parsed."""
    return int(buffer.shape[axis])


def narrowed(x: Expr, dtype: str) -> Expr:
    """x in the type of an output: TVM would round the NaN of all ones to a bfloat16 of zero."""
    return T.cast(T.Select(x <= T.infinity("float32"), x, T.float32("nan")), dtype)


def at_least(bound: Expr, x: Expr) -> Expr:
    """max(bound, x) that keeps NaN: for numbers that do not compare T.max and T.min give their second one."""
    return T.max(bound, x)


def exp(x: Expr) -> Expr:
    """exp(x) = 2^(k + r), k whole and |r| <= 1/2, by a polynomial in r; T.exp would not be vectorised.

    Its relative error is 3e-7 for |x| < 8 and grows to 1.3e-6 at the ends, where it is clamped. NaN stays NaN.
    """
    log2_e = T.float32(1.4426950408889634)
    clamped = T.min(T.float32(87.3), at_least(T.float32(-87.3), x))
    k = T.nearbyint(clamped * log2_e)
    r = clamped * log2_e - k
    p = T.float32(1.326472717e-3)
    for c in (9.6715126428e-3, 5.5507337433e-2, 2.4022242085e-1, 6.931469776e-1, 1.0):
        p = p * r + T.float32(c)
    return T.reinterpret("float32", T.reinterpret("int32", p) + T.cast(k, "int32") * T.int32(1 << 23))


def forget_gate(log_decay: Expr) -> Expr:
    """beta = exp(log_decay), exactly 0 below the smallest number that `exp` gives and infinite above its largest.

    So -inf forgets everything.
    """
    above = T.Select(log_decay > T.float32(87.3), T.infinity("float32"), exp(log_decay))
    return T.Select(log_decay < T.float32(-87.3), T.float32(0), above)


def sigmoid(x: Expr, exp: Callable[[Expr], Expr] = exp) -> Expr:
    """1 / (1 + exp(-x))."""
    return T.float32(1) / (T.float32(1) + exp(T.float32(0) - x))


def tanh_of(x: Expr) -> Expr:
    """tanh(x), near 0 by its series: the quotient would lose its digits there."""
    square, weight = x * x, exp(T.abs(x) * T.float32(-2))
    far = (T.float32(1) - weight) / (T.float32(1) + weight)
    series = T.float32(62 / 2835)
    for c in (-17 / 315, 2 / 15, -1 / 3, 1.0):
        series = series * square + T.float32(c)
    return T.Select(T.abs(x) < T.float32(0.3), x * series, T.Select(x < T.float32(0), T.float32(0) - far, far))


def sign_of(x: Expr) -> Expr:
    """-1, 0 or 1."""
    above, below = (T.Select(each > T.float32(0), T.float32(1), T.float32(0)) for each in (x, T.float32(0) - x))
    return above - below


def minus_mean(x: Expr, mean: Expr, width: int) -> Expr:
    """x - mean, exactly 0 in a row of one number: a product in x, added without rounding, would leave its rounding."""
    return T.float32(0) if width == 1 else x - mean
