"""Timing: repeated, interleaved, until the spread allows to stop; medians with their spread."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from codegen.device import Device
from tuner.errors import ThrottledError
from tuner.measure.timed import Sampler, Timed, Timing
from tuner.policy import Policy, policy_for

SETTLED = 0.003
"""Rounds end when every median is known to this share: half the distance of the quartiles over the root of rounds."""

_LEAST_TO_SETTLE = 12
_DISCARDED = 3


def sampler_for(policy: Policy) -> Sampler:
    """What takes samples as `policy` says."""
    if policy.on_cpu:
        from tuner.measure.cpu_timing import CpuSampler  # torch is imported by who times, not by who reads a timing.

        return CpuSampler(policy.cold)
    import torch

    from tuner.measure.clocks import clocks_of
    from tuner.measure.gpu_timing import GpuSampler, TorchGpu

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
    `seconds` in all, but not before `least` of them, and never go past `rounds`. A round in which the device was
    throttled does not count.

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
        ThrottledError: the device was, in three times as many rounds as are wanted.
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
                raise ThrottledError(device=device.key(), discarded=discarded)
            continue
        for name, value in taken.items():
            samples[name].append(value)  # type: ignore[arg-type]
        finished += 1
    return {name: Timing(tuple(values)) for name, values in samples.items()}


def _settled(samples: Mapping[str, list[float]]) -> bool:
    timings = [Timing(tuple(values)) for values in samples.values()]
    return all(
        len(each.samples) >= _LEAST_TO_SETTLE and each.spread / math.sqrt(len(each.samples)) <= SETTLED
        for each in timings
    )
