"""Rows of one head of one token: from tensors to float32 and back, and what a row is divided by."""

from __future__ import annotations

from collections.abc import Callable

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Buffer, Expr, at_least, extent, narrowed
from codegen.backends.tvm.emit.vectors import each_feature, sum_of_lanes, zeros

Row = Callable[[Expr], Expr]
"""A row by its features: row(d) is one of its numbers, in float32."""


def of(tensor: Buffer, *places: Expr) -> Row:
    """The row of a tensor behind these places."""
    return lambda d: T.cast(tensor[(*places, d)], "float32")


def put(tensor: Buffer, value: Expr, *places: Expr) -> None:
    """tensor[places] <- value, in the tensor's type."""
    narrow = narrowed if tensor.dtype == "bfloat16" else T.cast
    T.buffer_store(tensor, narrow(value, tensor.dtype), [*places])


def each(width: int, features: Expr, *statements: Callable[[Expr], None]) -> None:
    """Emits every statement(d) for every feature, whose number the call may decide: whole vectors, then the rest."""

    def at(d: Expr, lane: Expr) -> None:
        for statement in statements:
            statement(d)

    _each_lane(width, features, at)


def load(width: int, to: Buffer, row: Row) -> None:
    """to <- a row."""
    each_feature(width, extent(to, 0), lambda d: T.buffer_store(to, row(d), [d]))


def store(width: int, tensor: Buffer, row: Row, *places: Expr) -> None:
    """The row of a tensor behind these places <- row."""
    each_feature(width, extent(tensor, len(places)), lambda d: put(tensor, row(d), *places, d))


def store_row(width: int, tensor: Buffer, row: Buffer, eps: Buffer, *places: Expr) -> None:
    """The row of a tensor <- row, as `store_unit` is called."""
    store(width, tensor, of(row), *places)


def store_unit(width: int, tensor: Buffer, row: Buffer, eps: Buffer, *places: Expr) -> None:
    """The row of a tensor <- row / max(||row||, eps)."""
    factor = over_length(width, row, eps)
    store(width, tensor, lambda d: row[d] * factor, *places)


def kept(value: Expr) -> Expr:
    """A number that is worked out once, now."""
    number = T.alloc_buffer((1,), "float32")
    T.buffer_store(number, value, [0])
    return number[0]


def sum_of(terms: list[Expr]) -> Expr:
    """Their sum, in order."""
    first, *others = terms
    for each in others:
        first = first + each
    return first


def total(width: int, features: Expr, value: Row) -> Expr:
    """The sum of value(d) over all features."""
    (sums,) = zeros(width, 1)
    _each_lane(width, features, lambda d, lane: T.buffer_store(sums, sums[lane] + value(d), [lane]))
    sum_of_lanes(sums)
    return sums[0]


def _each_lane(width: int, features: Expr, statement: Callable[[Expr, Expr], None]) -> None:
    """Emits statement(d, lane of d) for every feature: whole vectors, then the rest."""
    whole, rest = features // width, features % width
    if not isinstance(whole, int) or whole:
        with T.serial(whole) as b, T.vectorized(width) as lane:
            statement(b * width + lane, lane)
    if not isinstance(rest, int) or rest:
        with T.serial(rest) as lane:
            statement(whole * width + lane, lane)


def over_length(width: int, row: Buffer, eps: Buffer) -> Expr:
    """1 / max(||row||, eps)."""
    length = T.sqrt(total(width, extent(row, 0), lambda d: row[d] * row[d]))
    return kept(T.float32(1) / at_least(eps[0], length))


def over_root_mean_square(width: int, features: Expr, row: Row, eps: Buffer) -> Expr:
    """1 / sqrt(mean of row^2 + eps)."""
    mean = total(width, features, lambda d: row(d) * row(d)) / T.cast(features, "float32")
    return kept(T.float32(1) / T.sqrt(mean + eps[0]))


def through_length(width: int, cotangent: Buffer, row: Buffer, eps: Buffer) -> None:
    """cotangent of row / max(||row||, eps) <- that of row.

    With r = 1 / ||row|| and n = r row it is r (e - n <n, e>), and e / eps where eps is the larger.
    """
    features = extent(row, 0)
    r = over_length(width, row, eps)
    inner = total(width, features, lambda d: row[d] * cotangent[d]) * r * r
    along = kept(T.Select(r * eps[0] < T.float32(1), inner, T.float32(0)))
    load(width, cotangent, lambda d: (cotangent[d] - row[d] * along) * r)
