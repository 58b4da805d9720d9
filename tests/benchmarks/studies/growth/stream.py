"""A steady stream of decode steps through the reference model, and whether its cost stays what it was.

On one thread: a token of so small a model is too little work to wake another for, which takes a third longer.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.model import TrellisLM
from trellis_ops.lm.state import TrellisState
from tuner.measure.timed import Timing


@dataclass(frozen=True)
class Stream:
    """What a long run of steps gave.

    Attributes:
        tokens: how many steps were run, one after another.
        windows: seconds per token of each window of them, in order, from the first token on.
        young, old: seconds per token of windows of steps in turn: from the state before the first token, and from that
            at the end.
        state_bytes: of the state, before the first token and at the end.
    """

    tokens: int
    windows: tuple[float, ...]
    young: Timing
    old: Timing
    state_bytes: tuple[int, int]

    @property
    def late_to_early(self) -> float:
        """The last tenth of the windows over the first, the fastest of each: between them a machine may become busy."""
        tenth = max(1, len(self.windows) // 10)
        return min(self.windows[-tenth:]) / min(self.windows[:tenth])


def stream_model() -> TrellisLM:
    """The model that is streamed: one layer of the preset `tiny`, seeded."""
    torch.manual_seed(0)
    return TrellisLM(TrellisConfig.preset("tiny", layers=1)).eval()


@torch.no_grad()
def run_stream(model: TrellisLM, tokens: int, steps: int, rounds: int) -> Stream:
    """Feed the model its own likeliest token `tokens` times, then time windows from its young and its old state.

    Windows are of `steps` tokens. One of another stream comes first, so that none of this one loads kernels.
    """
    threads, token = torch.get_num_threads(), torch.zeros(1, dtype=torch.int64)
    torch.set_num_threads(1)
    window(model, model.first_state(1), token, steps)
    state, young = model.first_state(1), model.first_state(1)
    token.zero_()
    windows = tuple(window(model, state, token, steps) for _ in range(max(1, tokens // steps)))
    sizes = young.nbytes(), state.nbytes()
    samples = [[window(model, each.clone(), token, steps) for each in (young, state)] for _ in range(rounds)]
    torch.set_num_threads(threads)
    return Stream(tokens, windows, Timing(tuple(a for a, _ in samples)), Timing(tuple(b for _, b in samples)), sizes)


def window(model: TrellisLM, state: TrellisState, token: torch.Tensor, steps: int) -> float:
    """Seconds per token of `steps` of them, each fed the one before; moves the state and the token."""
    started = time.perf_counter()
    for _ in range(steps):
        token.copy_(model.step(token, state).argmax(-1))
    return (time.perf_counter() - started) / steps
