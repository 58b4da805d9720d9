"""How gradients pass through the inner gradient step: `bilevel` or `first_order` (arXiv 2512.23852, section 3.2)."""

from __future__ import annotations

OUTER_GRADIENTS = ("bilevel", "first_order")
"""`bilevel` differentiates the chunked forward exactly; `first_order` treats z as a constant inside u."""


def is_first_order(outer_gradient: str) -> bool:
    """Whether z is a constant inside u.

    Raises:
        ValueError: a name outside `OUTER_GRADIENTS`.
    """
    if outer_gradient not in OUTER_GRADIENTS:
        raise ValueError(f"outer_gradient={outer_gradient!r} is not known; choose one of: {', '.join(OUTER_GRADIENTS)}")
    return outer_gradient == "first_order"
