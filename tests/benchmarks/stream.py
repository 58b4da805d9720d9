"""A steady stream of decode steps through the reference model, and whether its cost stays what it was."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from trellis_ops.config import TrellisConfig
from trellis_ops.model import TrellisLM
from trellis_ops.state import TrellisState
from tuner.measure import Timing


@dataclass(frozen=True)
class Stream:
    """What a long run of steps gave.

    Attributes:
        tokens: how many steps were run, one after another.
        windows: seconds per token of each window of them, in order.
        young, old: seconds per token of windows of steps in turn: from a copy of the state that the first window left,
            and from the state at the end.
        state_bytes: of the state, after the first window and at the end.
    """

    tokens: int
    windows: tuple[float, ...]
    young: Timing
    old: Timing
    state_bytes: tuple[int, int]

    @property
    def late_to_early(self) -> float:
        """The last tenth of the windows over the first, the median of each."""
        tenth = max(1, len(self.windows) // 10)
        return Timing(self.windows[-tenth:]).seconds / Timing(self.windows[:tenth]).seconds


def stream_model() -> TrellisLM:
    """The model that is streamed: one layer of the preset `tiny`, seeded."""
    torch.manual_seed(0)
    return TrellisLM(TrellisConfig.preset("tiny", layers=1)).eval()


@torch.no_grad()
def run_stream(model: TrellisLM, tokens: int, window: int, rounds: int) -> Stream:
    """Feed the model its own likeliest token `tokens` times, then time windows from its young and its old state."""
    state = model.first_state(1)
    token = torch.zeros(1, dtype=torch.int64)
    _window(model, state, token, window)
    young = state.clone()
    windows = tuple(_window(model, state, token, window) for _ in range(tokens // window - 1))
    sizes = young.nbytes(), state.nbytes()
    times = [(_again(model, young, token, window), _again(model, state, token, window)) for _ in range(rounds)]
    samples = [(a(), b()) for a, b in times]
    return Stream(tokens, windows, Timing(tuple(a for a, _ in samples)), Timing(tuple(b for _, b in samples)), sizes)


def _again(model: TrellisLM, state: TrellisState, token: torch.Tensor, window: int) -> Callable[[], float]:
    return lambda: _window(model, state.clone(), token, window)


def _window(model: TrellisLM, state: TrellisState, token: torch.Tensor, steps: int) -> float:
    started = time.perf_counter()
    for _ in range(steps):
        token.copy_(model.step(token, state).argmax(-1))
    return (time.perf_counter() - started) / steps
