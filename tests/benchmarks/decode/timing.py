"""Seconds per token of several decoders, and of reading their weights, in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tests.benchmarks.turns import take_turns
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.model import TrellisLM
from trellis_ops.lm.state import TrellisState
from tuner.measure.timed import Timing

_WARM = 2


def model_of(preset: str, weights: str) -> TrellisLM:
    """A seeded model, the same for each type of packed weights."""
    torch.manual_seed(0)
    model = TrellisLM(TrellisConfig.preset(preset)).requires_grad_(False).eval()
    model.decode_weights = weights
    return model


def steps(model: TrellisLM, state: TrellisState, count: int) -> Callable[[], float]:
    """Seconds per step of `count` of them, each row fed its likeliest token."""
    token = torch.zeros(state.batch, dtype=torch.int64)

    def sample() -> float:
        started = time.perf_counter()
        for _ in range(count):
            token.copy_(model.step(token, state).argmax(-1))
        return (time.perf_counter() - started) / count

    return sample


def generating(model: TrellisLM, count: int) -> Callable[[], float]:
    """Seconds per token of a call of `generate` that adds `count` tokens to one."""
    prompt = torch.zeros(1, 1, dtype=torch.int64)

    def sample() -> float:
        started = time.perf_counter()
        model.generate(prompt, count, temperature=0)
        return (time.perf_counter() - started) / count

    return sample


def reading(weights: Tensor) -> Callable[[], float]:
    """Seconds that adding up `weights`, float32, takes: once through memory, on as many threads as torch may use."""

    def sample() -> float:
        started = time.perf_counter()
        weights.sum()
        return time.perf_counter() - started

    return sample


def in_turn(samplers: Mapping[str, Callable[[], float]], seconds: float, rounds: int) -> dict[str, Timing]:
    """Samples of each, after some that do not count."""
    for sampler in samplers.values():
        for _ in range(_WARM):
            sampler()
    return take_turns(samplers, seconds=seconds, rounds=rounds, least=3)
