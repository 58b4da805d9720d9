"""Times as people read them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """A time with three digits and its unit.

    Example:
        >>> duration(0.0123), duration(1.5e-5), duration(0.0009996)
        ('12.3 ms', '15.0 us', '1.00 ms')
    """
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if float(f"{seconds * scale:.3g}") >= 1.0 or unit == "us":
            return f"{seconds * scale:#.3g} {unit}".replace(". ", " ")
    raise AssertionError("the last unit serves everything below")
