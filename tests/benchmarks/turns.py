"""Samples of several implementations in turn, wherever each of them runs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

from codegen.device import Device
from tuner.measure.measure import measure
from tuner.measure.timed import Timed, Timing

_WARM_SECONDS = 0.02
_SAMPLE_SECONDS = 0.01
_ROUNDS = 100


def sample(call: Timed, device: Device) -> float:
    """Seconds per call in a stream of them, without its beginning.

    So no sample pays for the caches and the spinning threads of what ran before it, nor for the operating system,
    which takes milliseconds until threads that have just been woken run on cores of their own.
    """
    call.reset()
    going_on = Timed(call.run, reset=lambda: None)
    deadline = time.monotonic() + _WARM_SECONDS
    while time.monotonic() < deadline:
        call.run()
    return measure({"call": going_on}, device, seconds=_SAMPLE_SECONDS, rounds=_ROUNDS, least=1)["call"].seconds


def take_turns(
    samplers: Mapping[str, Callable[[], float]], *, seconds: float, rounds: int, least: int
) -> dict[str, Timing]:
    """A sample of each, round after round, for `seconds` but from `least` to `rounds` of them.

    Returns:
        The samples by name; those of the same index were taken in the same round.
    """
    samples: dict[str, list[float]] = {name: [] for name in samplers}
    deadline = time.monotonic() + seconds
    for finished in range(rounds):
        if finished >= least and time.monotonic() >= deadline:
            break
        for name, sampler in samplers.items():
            samples[name].append(sampler())
    return {name: Timing(tuple(values)) for name, values in samples.items()}


def ratio(over: Timing, under: Timing) -> float:
    """How many times as long `over` takes as `under`: the median over the rounds."""
    return statistics.median(a / b for a, b in zip(over.samples, under.samples, strict=True))
