"""The range of constants: that of float32, in which kernels compute."""

from __future__ import annotations

import math
import struct
from fractions import Fraction

MOST_BITS = 4096
"""Of a constant before it is folded with others; float64 has 1074 at most behind the point."""

RANGE = "the range of float32, in which kernels compute: 0, and 1.4e-45 to 3.4e38 of either sign"


def in_float32(number: int | Fraction) -> bool:
    """Whether it rounds to a finite number of float32, and to 0 only if it is 0."""
    try:
        (rounded,) = struct.unpack("<f", struct.pack("<f", float(number)))
    except OverflowError:
        return False
    return not number or rounded != 0


def is_huge(number: int | Fraction) -> bool:
    """Whether it has so many digits that Python would be slow with it, or print it never."""
    return max(number.numerator.bit_length(), number.denominator.bit_length()) > MOST_BITS


def shown(number: int | Fraction) -> str:
    """The number for an error message, its order of magnitude where float64 has none of its size."""
    try:
        found = float(number)
    except OverflowError:
        found = 0.0
    if found or not number:
        return repr(found) if found != int(found) or abs(found) >= 1e16 else str(int(found))
    order = math.log10(abs(number.numerator)) - math.log10(number.denominator)
    return f"{'-' if number < 0 else ''}1e{math.floor(order)} (about)"
