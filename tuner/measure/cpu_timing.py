"""Samples of calls on a CPU, with warm caches or cold ones."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from tuner.measure.timed import Timed, repeats_for

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_LEAST_BYTES, _MOST_BYTES = 32 * 2**20, 128 * 2**20


@dataclass
class CpuSampler:
    """Takes times by the clock.

    Args:
        cold: whether memory of twice the caches' size is written before each call; a sample is then one call.
    """

    cold: bool
    _repeats: dict[str, int] = field(default_factory=dict)
    _other: Tensor | None = None

    def warm(self, name: str, call: Timed) -> None:
        """Run twice; a sample is as many calls as fill a millisecond, at least one."""
        for _ in range(2):
            call.reset()
            once = self._seconds(call, 1)
        self._repeats[name] = 1 if self.cold else repeats_for(once)

    def sample(self, name: str, call: Timed) -> float:
        """Seconds per call."""
        call.reset()
        if self.cold:
            self._fill_caches()
        else:
            # What was just put back has pushed the rest out of the caches.
            call.run()
        return self._seconds(call, self._repeats[name])

    def _fill_caches(self) -> None:
        if self._other is None:
            self._other = torch.zeros(flushed_bytes() // 4)
        self._other.add_(1.0)

    @staticmethod
    def _seconds(call: Timed, repeats: int) -> float:
        run = call.run
        started = time.perf_counter()
        for _ in range(repeats):
            run()
        return (time.perf_counter() - started) / repeats


def flushed_bytes() -> int:
    """How much is written to make caches cold: twice the largest, from 32 MiB to 128 MiB.

    A shared last cache may be larger; what a virtual machine has of it is less than it is told.
    """
    sizes = [_size(path.read_text().strip()) for path in _CACHES.glob("index*/size")]
    return min(max(2 * max(sizes, default=0), _LEAST_BYTES), _MOST_BYTES)


def _size(text: str) -> int:
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    return int(text[:-1]) * units[text[-1]] if text[-1:] in units else int(text or 0)
