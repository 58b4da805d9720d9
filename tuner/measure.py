"""Timing: warm, repeated, interleaved; medians with their spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from codegen.device import Device

_SAMPLE_SECONDS = 1e-3
_MOST_CALLS = 1000


@dataclass(frozen=True)
class Timed:
    """Something to time.

    Attributes:
        run: one call.
        reset: puts the inputs back to what they were; called before every sample, outside the time that is taken,
            so that no kernel is measured on its own output (a state that is updated in place).
    """

    run: Callable[[], object]
    reset: Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Samples of one call.

    Attributes:
        samples: seconds per call, one for each sample, in the order they were taken.
    """

    samples: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """The median."""
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, relative to the median."""
        if len(self.samples) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        return (high - low) / 2 / self.seconds


def policy(device: Device, rounds: int) -> str:
    """How `measure` takes times, as a record states it."""
    if device.kind == "cpu":
        return f"cpu, {device.cores} cores, warm caches, interleaved medians of up to {rounds}"
    return f"{device.kind} events, warm caches, interleaved medians of up to {rounds}"


def measure(
    calls: Mapping[str, Timed], device: Device, *, seconds: float, rounds: int, least: int = 3
) -> dict[str, Timing]:
    """Time `calls` in turn, round after round, so that whatever disturbs the machine disturbs all of them.

    Each call runs twice to warm up. A sample is as many calls as fill a millisecond, at least one. Rounds end after
    `seconds` in all, but not before `least` of them, and never go past `rounds`.

    Returns:
        The samples by name; sample i of one and of another were taken in the same round.
    """
    repeats = {name: _warm(call, device) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    deadline = time.monotonic() + seconds
    for finished in range(rounds):
        if finished >= least and time.monotonic() >= deadline:
            break
        for name, call in calls.items():
            call.reset()
            samples[name].append(_sample(call.run, repeats[name], device))
    return {name: Timing(tuple(values)) for name, values in samples.items()}


def _warm(call: Timed, device: Device) -> int:
    call.reset()
    _sample(call.run, 1, device)
    call.reset()
    once = _sample(call.run, 1, device)
    return max(1, min(_MOST_CALLS, round(_SAMPLE_SECONDS / max(once, 1e-9))))


def _sample(run: Callable[[], object], repeats: int, device: Device) -> float:
    if device.kind == "cpu":
        started = time.perf_counter()
        for _ in range(repeats):
            run()
        return (time.perf_counter() - started) / repeats
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000 / repeats
