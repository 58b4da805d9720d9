"""Numbers that callers give as settings: exactly ints and floats from here on, whatever they were given as.

True is an int and 2.0 equals 2, so that either would find what was made for 1 or 2, or end in a compiler's error.
"""

from __future__ import annotations

import numbers
import operator
from typing import SupportsFloat, SupportsIndex, cast

from codegen.errors import NumberTypeError, SizeError

LEAST_FLOAT32, MOST_FLOAT32 = 2.0**-126, (2.0 - 2.0**-23) * 2.0**127
"""The least positive float32 that every machine keeps, and the largest."""

_SYMBOLIC = ("SymInt", "SymFloat")  # of torch, which is not imported here: what torch.compile traces with


def is_symbolic(value: object) -> bool:
    """Whether `value` is a number that torch.compile knows by name only."""
    return type(value).__name__ in _SYMBOLIC


def whole_number(name: str, value: object, most: int | None = None, also: str = "", least: int = 1) -> int:
    """`value`, a whole number of at least `least`, as an int; numbers of numpy are taken, bools and tensors are not.

    Args:
        name: of the setting.
        value: what was given for it.
        most: the largest allowed; None for any.
        also: what else the setting takes, for the message.
        least: the smallest allowed.

    Raises:
        NumberTypeError: it is something else than a whole number.
        SizeError: it is out of range.
    """
    expected = (f"an int of at least {least}" if most is None else f"an int from {least} to {most}") + also
    if type(value) is not int:
        if isinstance(value, bool) or not (isinstance(value, numbers.Integral) or is_symbolic(value)):
            raise NumberTypeError(name=name, value=value, kind=type(value).__name__, expected=expected)
        value = operator.index(int(cast(SupportsIndex, value)))
    if value < least or (most is not None and value > most):
        raise SizeError(name=name, value=value, expected=expected)
    return value


def positive_number(name: str, value: object) -> float:
    """`value`, a positive number that float32 holds, as a float; numbers of numpy are taken, bools and tensors are not.

    Raises:
        NumberTypeError: it is no number.
        SizeError: it is out of range, or NaN.
    """
    expected = f"a positive finite number, for float32 from {LEAST_FLOAT32:.4g} to {MOST_FLOAT32:.4g}"
    if isinstance(value, bool) or not (isinstance(value, numbers.Real) or is_symbolic(value)):
        raise NumberTypeError(name=name, value=value, kind=type(value).__name__, expected=expected)
    try:
        number = float(cast(SupportsFloat, value))
    except OverflowError as error:
        raise SizeError(name=name, value="a number beyond float64", expected=expected) from error
    if not LEAST_FLOAT32 <= number <= MOST_FLOAT32:
        raise SizeError(name=name, value=number, expected=expected)
    return number
