"""Timing: repeated, interleaved, until the spread allows to stop; medians with their spread."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from codegen.device import Device
from tuner.errors import HeldBackError
from tuner.policy import Policy, policy_for

SAMPLE_SECONDS = 1e-3
"""A sample is as many calls as fill this time."""

SETTLED = 0.003
"""Rounds end when every median is known to this share: half the distance of the quartiles over the root of rounds."""

_LEAST_TO_SETTLE = 12
_MOST_CALLS = 1000
_DISCARDED = 3


@dataclass(frozen=True)
class Timed:
    """Something to time.

    Attributes:
        run: one call.
        reset: puts the inputs back to what they were; called before every sample, outside the time that is taken,
            so that no kernel is measured on its own output (a state that is updated in place).
        others: the same call on other inputs, which a GPU's sampler takes in rotation with `run`.
    """

    run: Callable[[], object]
    reset: Callable[[], object]
    others: tuple[Callable[[], object], ...] = ()


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


class Sampler(Protocol):
    """Takes samples of one call after another."""

    def warm(self, name: str, call: Timed) -> None:
        """Run the call called `name` until it is warm, and decide how many make a sample."""

    def sample(self, name: str, call: Timed) -> float | None:
        """Seconds per call; None if something held the device back."""


def sampler_for(policy: Policy) -> Sampler:
    """What takes samples as `policy` says."""
    if policy.on_cpu:
        from tuner.cpu_timing import CpuSampler

        return CpuSampler(policy.cold)
    import torch

    from tuner.clocks import clocks_of
    from tuner.gpu_timing import GpuSampler, TorchGpu

    return GpuSampler(TorchGpu(), policy.graph, clocks_of(torch.cuda.current_device()))


def measure(
    calls: Mapping[str, Timed],
    device: Device,
    *,
    seconds: float,
    rounds: int,
    least: int = 3,
    settle: bool = False,
    policy: Policy | None = None,
    sampler: Sampler | None = None,
) -> dict[str, Timing]:
    """Time `calls` in turn, round after round, so that whatever disturbs the machine disturbs all of them.

    Each call runs twice to warm up. A sample is as many calls as fill a millisecond, at least one. Rounds end after
    `seconds` in all, but not before `least` of them, and never go past `rounds`. A round in which the device was held
    back does not count.

    Args:
        calls: by name.
        device: where they run.
        seconds, rounds, least: how long.
        settle: whether rounds also end when every median is `SETTLED`.
        policy: how; the device's default unless given.
        sampler: of that policy, unless given.

    Returns:
        The samples by name; sample i of one and of another were taken in the same round.

    Raises:
        HeldBackError: the device was, in three times as many rounds as are wanted.
    """
    taking = sampler or sampler_for(policy or policy_for(device))
    for name, call in calls.items():
        taking.warm(name, call)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    deadline = time.monotonic() + seconds
    finished = discarded = 0
    while finished < rounds:
        if finished >= least and (time.monotonic() >= deadline or (settle and _settled(samples))):
            break
        taken = {name: taking.sample(name, call) for name, call in calls.items()}
        if None in taken.values():
            discarded += 1
            if discarded > _DISCARDED * rounds:
                raise HeldBackError(device=device.key(), discarded=discarded)
            continue
        for name, value in taken.items():
            samples[name].append(value)  # type: ignore[arg-type]
        finished += 1
    return {name: Timing(tuple(values)) for name, values in samples.items()}


def repeats_for(once: float) -> int:
    """How many calls of `once` seconds make a sample."""
    return max(1, min(_MOST_CALLS, round(SAMPLE_SECONDS / max(once, 1e-9))))


def _settled(samples: Mapping[str, list[float]]) -> bool:
    timings = [Timing(tuple(values)) for values in samples.values()]
    return all(
        len(each.samples) >= _LEAST_TO_SETTLE and each.spread / math.sqrt(len(each.samples)) <= SETTLED
        for each in timings
    )
