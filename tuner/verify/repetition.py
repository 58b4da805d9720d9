"""Does a candidate always say the same? Runs of one launch, each into poisoned outputs, compared bit for bit.

No kernel of this project adds in an order that chance decides (there are no atomics), so there is nothing to allow for.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from tuner.verify.launch import Launch

LEAST_RUNS, MOST_RUNS = 20, 200
"""200 runs find a fault that shows in one of twenty with all but 4e-5 of certainty, in one of a hundred with 87%."""

SECONDS = 0.3
"""Of repeated runs, after the least of them."""


def differing(launch: Launch, first: dict[str, Tensor]) -> str:
    """What repeated runs of `launch` do not agree on with its outputs `first`, in a sentence; empty if on all."""
    started = time.monotonic()
    for runs in range(2, MOST_RUNS + 2):
        now = launch.outputs_of_run()
        unequal = [name for name, tensor in first.items() if not _same_bits(tensor, now[name])]
        if unequal:
            return f"two of {runs} runs on the same inputs differ in {', '.join(unequal)}"
        if runs > LEAST_RUNS and time.monotonic() - started > SECONDS:
            break
    return ""


def _same_bits(one: Tensor, other: Tensor) -> bool:
    # NaN, the poison, is unequal to itself; what was never written is no disagreement, and found elsewhere.
    return torch.equal(one, other) or torch.equal(one.nan_to_num(), other.nan_to_num())
