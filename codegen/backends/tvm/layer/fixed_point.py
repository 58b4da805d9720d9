"""Rows of inputs as whole numbers of two digits, by which int8 weights are multiplied in 16 bits and summed in 32.

A float32 product has to widen every weight first, which takes longer than memory takes to deliver it. Sums of whole
numbers are exact; an input is off by 2^-(2 bits + 1) of the largest one of its row at most, `bits` as in `Digits`.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Buffer, Expr
from codegen.backends.tvm.emit.vectors import each_feature, highest_of_lanes

FEWEST_BITS, _MOST_BITS = 11, 14
"""Of a digit: with fewer, an input would lose more than float32 does; more would not fit 16 bits."""

_LARGEST_WEIGHT = 128
_LARGEST_SUM = 2**31 - 1
_INFINITE, _FRACTION_BITS, _BIAS = 0x7F800000, 23, 127
_LEAST_EXPONENT = 37
"""Biased, of the power of two that stands for a row's largest number: below 2^-90 inputs lose digits."""

_ROUNDING = 1.5 * 2**23
"""What is added to a float32 number of up to 2^22 is rounded to a whole one, which then stands in the lowest bits."""


@dataclass(frozen=True)
class Digits:
    """Inputs x[r, i] = step[r] (2^(bits + 1) high[r, i] + low[r, i]).

    Attributes:
        high, low: int16, `[rows, inputs in whole words]`, both at most 2^bits in size.
        step: float32, `[rows]`; NaN where an input is not finite, and so are then all sums of the row.
        bits: of a digit.
    """

    high: Buffer
    low: Buffer
    step: Buffer
    bits: int

    @property
    def rows(self) -> Expr:
        """How many rows there are."""
        return self.step.shape[0]

    def pair(self, digit: Buffer, row: Expr, i: Expr, lanes: int) -> Expr:
        """A digit of the inputs i and i + 1 in every lane, `int16x(2 lanes)`."""
        both = T.reinterpret("int32", digit[row, T.ramp(i, 1, 2)])
        return T.reinterpret(f"int16x{2 * lanes}", T.broadcast(both, lanes))


def digit_bits(columns: int) -> int:
    """Bits of a digit such that no sum over `columns` inputs overflows."""
    return min(_MOST_BITS, (_LARGEST_SUM // (_LARGEST_WEIGHT * columns)).bit_length() - 1)


def digits_of(width: int, x: Buffer, columns: int, padded: int) -> Digits:
    """The first `columns` inputs of every row of x, and zeros up to `padded`.

    Args:
        width: lanes of a vector.
    """
    rows, bits = x.shape[0], digit_bits(columns)
    high, low = (T.alloc_buffer((rows, padded), "int16") for _ in range(2))
    step = T.alloc_buffer((rows,), "float32")
    with T.serial(rows) as row:
        largest = _largest(width, x, row, columns)
        # 2^(field - 127) is above half of the largest number, and not above it.
        field = T.max(largest[0] >> _FRACTION_BITS, T.int32(_LEAST_EXPONENT))
        to_high = T.alloc_buffer((1,), "float32")
        T.buffer_store(to_high, _power(T.int32(2 * _BIAS + bits - 1) - field), [0])
        finite = largest[0] < T.int32(_INFINITE)
        unit = _power(T.Select(finite, field - T.int32(2 * bits), T.int32(1)))
        T.buffer_store(step, T.Select(finite, unit, T.float32("nan")), [row])

        def split(d: Expr) -> None:
            scaled = x[row, d] * to_high[0]
            whole = _nearest(scaled)
            # By way of the whole number: TVM would cancel what was added to round it.
            rest = (scaled - T.cast(whole, "float32")) * T.float32(2 ** (bits + 1))
            T.buffer_store(high, whole, [row, d])
            T.buffer_store(low, _nearest(rest), [row, d])

        each_feature(width, columns, split)
        with T.serial(padded - columns) as d:
            T.buffer_store(high, T.int16(0), [row, columns + d])
            T.buffer_store(low, T.int16(0), [row, columns + d])
    return Digits(high, low, step, bits)


def _largest(width: int, x: Buffer, row: Expr, columns: int) -> Buffer:
    """Every lane: the bits of the largest size in a row. As whole numbers, bits of NaN are above all others."""
    largest = T.alloc_buffer((width,), "int32")
    with T.vectorized(width) as lane:
        T.buffer_store(largest, T.int32(0), [lane])

    def size(d: Expr) -> Expr:
        return T.bitwise_and(T.reinterpret("int32", x[row, d]), T.int32(0x7FFFFFFF))

    whole = columns // width
    if whole:
        with T.serial(whole) as b, T.vectorized(width) as lane:
            T.buffer_store(largest, T.max(largest[lane], size(b * width + lane)), [lane])
    if columns % width:
        with T.serial(columns % width) as lane:
            T.buffer_store(largest, T.max(largest[lane], size(whole * width + lane)), [lane])
    highest_of_lanes(largest)
    return largest


def _nearest(x: Expr) -> Expr:
    """The whole number, int16, nearest to x: TVM makes no vectors of T.nearbyint."""
    return T.cast(T.reinterpret("int32", x + T.float32(_ROUNDING)), "int16")


def _power(field: Expr) -> Expr:
    """2^(field - 127)."""
    return T.reinterpret("float32", field << T.int32(_FRACTION_BITS))
