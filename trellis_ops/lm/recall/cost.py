"""What a model costs: parameters, the state of a sequence, and the time of a token."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

from trellis_ops.lm.model import TrellisLM

_WARM, _TIMED = 8, 64
"""Tokens that are decoded before, and while, the time is taken."""


@dataclass(frozen=True)
class Cost:
    """Attributes as in `trellis_ops.lm.recall.cell.Result`."""

    parameters: int
    state_bytes: int
    decode_us: float


@torch.no_grad()
def cost_of(model: TrellisLM) -> Cost:
    """The cost of a model; the time is the median of 64 tokens of one sequence."""
    state, seconds = model.first_state(1), []
    for place in range(_WARM + _TIMED):
        token = torch.tensor([place % model.config.vocab_size])
        started = time.perf_counter()
        model.step(token, state)
        seconds.append(time.perf_counter() - started)
    return Cost(model.count_parameters(), state.nbytes(), statistics.median(seconds[_WARM:]) * 1e6)
