"""The learning rate: a linear warm-up, then a cosine."""

from __future__ import annotations

import math


def rate_share(step: int, steps: int, warmup: int, final: float = 0.0) -> float:
    """The share of the peak learning rate at `step`, counted from 0, of `steps`.

    Args:
        step: which step.
        steps: the length of the run.
        warmup: steps over which the share rises to 1; at least 1.
        final: the share that the cosine ends at.
    """
    cosine = final + (1.0 - final) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
    return min((step + 1) / warmup, cosine)
