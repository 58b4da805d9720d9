"""Numbers in expressions: exact, and within the range of float32, in which kernels compute."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from fractions import Fraction

Number = int | float | Fraction
"""What stands for a number; inside of expressions an int, or a Fraction that is none."""

Exact = int | Fraction

MOST_BITS = 4096
"""Of a constant before it is folded with others; float64 has 1074 at most behind the point."""

RANGE = "the range of float32, in which kernels compute: 0, and 1.4e-45 to 3.4e38 of either sign"


def in_float32(number: Exact) -> bool:
    """Whether it rounds to a finite number of float32, and to 0 only if it is 0."""
    try:
        (rounded,) = struct.unpack("<f", struct.pack("<f", float(number)))
    except OverflowError:
        return False
    return not number or rounded != 0


def is_huge(number: Exact) -> bool:
    """Whether it has so many digits that Python would be slow with it, or print it never."""
    return max(number.numerator.bit_length(), number.denominator.bit_length()) > MOST_BITS


def shown(number: Exact) -> str:
    """The number for an error message, its order of magnitude where float64 has none of its size."""
    try:
        found = float(number)
    except OverflowError:
        found = 0.0
    if found or not number:
        return repr(found) if found != int(found) or abs(found) >= 1e16 else str(int(found))
    order = math.log10(abs(number.numerator)) - math.log10(number.denominator)
    return f"{'-' if number < 0 else ''}1e{math.floor(order)} (about)"


def exact(x: Number) -> Exact:
    """A number as an int, or a Fraction that is none; a float is the decimal number that Python prints.

    Raises:
        TypeError: it is no number.
        ValueError: it is infinite, NaN or of thousands of digits.
    """
    if isinstance(x, bool) or not isinstance(x, (int, float, Fraction)):
        raise TypeError(f"{x!r} is no number; write a Python int or float, and exp(y * log(x)) for x ** y")
    if isinstance(x, float) and not math.isfinite(x):
        raise ValueError(f"a map has the number {float(x)!r}, but must have finite numbers only")
    found = Fraction(str(x)) if isinstance(x, float) else x
    if is_huge(found):
        raise ValueError(f"the constant {shown(found)} is beyond {RANGE}")
    return found.numerator if found.denominator == 1 else found


def power_of_number(base: Exact, k: Exact) -> Number:
    """A number to the power of another.

    Raises:
        ValueError: it is no real number, or beyond `RANGE`.
    """
    written = f"{shown(base)} ** {shown(k)}"
    if not base and k < 0:
        raise ValueError(f"{written} divides by 0; write a denominator that is not 0")
    if k.denominator == 1:
        # Whole numbers are exact here, and would be computed for hours.
        bits = max(base.numerator.bit_length(), base.denominator.bit_length()) - 1
        if bits * abs(k.numerator) > 2 * MOST_BITS:
            raise ValueError(f"{written} is beyond {RANGE}")
        return Fraction(base) ** k.numerator
    if base < 0:
        raise ValueError(f"{written} is no real number; write a base that is not negative")
    try:
        found: float = float(base) ** float(k)
    except OverflowError as error:
        raise ValueError(f"{written} is beyond {RANGE}") from error
    return found


def on_numbers(function: str, numbers: list[Exact]) -> float:
    """A function of the table in `codegen.maps.functions`, of numbers.

    Raises:
        ValueError: it is no finite number.
    """
    try:
        found = _ON_NUMBERS[function](*map(float, numbers))
    except (ValueError, ArithmeticError):
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"{function}({', '.join(map(shown, numbers))}) is no finite number; write a finite one for it")
    return found


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


_ON_NUMBERS: dict[str, Callable[..., float]] = {
    "exp": math.exp,
    "log": math.log,
    "sigmoid": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "tanh": math.tanh,
    "abs": abs,
    "sign": lambda x: (x > 0) - (x < 0),
    "max": max,
    "min": min,
}
