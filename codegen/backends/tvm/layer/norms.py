"""Norms of rows: RMSNorm of a residual stream and of a head's output, and rows of length one."""

from __future__ import annotations

from collections.abc import Callable

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Buffer, Expr
from codegen.backends.tvm.emit.vectors import each_feature, sum_of_lanes, zeros


def sum_of_squares(width: int, features: int, value: Callable[[Expr], Expr]) -> Expr:
    """The sum over all features of value(d) squared."""
    (sums,) = zeros(width, 1)
    whole = features // width
    if whole:
        with T.serial(whole) as b, T.vectorized(width) as lane:
            x = value(b * width + lane)
            T.buffer_store(sums, sums[lane] + x * x, [lane])
    if features % width:
        with T.serial(features % width) as lane:
            x = value(whole * width + lane)
            T.buffer_store(sums, sums[lane] + x * x, [lane])
    sum_of_lanes(sums)
    return sums[0]


def rms(width: int, to: Buffer, x: Buffer, vectors: Buffer, weight: int, eps: int) -> None:
    """to <- RMSNorm(x) of every row; the norm's weight and its epsilon stand in `vectors`."""
    features = int(x.shape[1])
    with T.serial(x.shape[0]) as row:
        factor = T.alloc_buffer((1,), "float32")
        squares = sum_of_squares(width, features, lambda d: x[row, d])
        T.buffer_store(factor, _inverse_root(squares / T.float32(features) + vectors[eps]), [0])
        each_feature(
            width, features, lambda d: T.buffer_store(to, x[row, d] * factor[0] * vectors[weight + d], [row, d])
        )


def rms_of_head(
    width: int, y: Buffer, features: int, vectors: Buffer, weight: int, eps: int, store: Callable[[Expr, Expr], None]
) -> None:
    """Emits store(d, RMSNorm(y)[d]) for a head's output y."""
    factor = T.alloc_buffer((1,), "float32")
    squares = sum_of_squares(width, features, lambda d: y[d])
    T.buffer_store(factor, _inverse_root(squares / T.float32(features) + vectors[eps]), [0])
    each_feature(width, features, lambda d: store(d, y[d] * factor[0] * vectors[weight + d]))


def to_unit(width: int, x: Buffer, features: int, vectors: Buffer, eps: int) -> None:
    """x <- x / max(||x||, eps)."""
    factor = T.alloc_buffer((1,), "float32")
    squares = sum_of_squares(width, features, lambda d: x[d])
    T.buffer_store(factor, T.float32(1) / T.max(vectors[eps], T.sqrt(squares)), [0])
    each_feature(width, features, lambda d: T.buffer_store(x, x[d] * factor[0], [d]))


def _inverse_root(x: Expr) -> Expr:
    return T.float32(1) / T.sqrt(x)
