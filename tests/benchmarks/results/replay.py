"""Samples that were taken in turn with others, handed to pytest-benchmark for its statistics, tables and files.

pytest-benchmark times one function after the other, so whatever disturbs the machine meanwhile disturbs one of them.
Its `timer` option takes any clock: this one advances by the next recorded sample.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest


class SampleClock:
    """A clock that stands still but for `advance`."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds

    def advance(self, sample: float) -> None:
        self.seconds += sample


class Replay:
    """pytest-benchmark's fixture on a sample clock."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._clock = SampleClock()
        request.node.add_marker(pytest.mark.benchmark(timer=self._clock.now))
        self._benchmark = request.getfixturevalue("benchmark")

    def __call__(self, group: str, samples: Sequence[float], **extra_info: object) -> None:
        """Report `samples`, in seconds, as one benchmark of `group`."""
        self._benchmark.group = group
        self._benchmark.extra_info.update(extra_info)
        rest = iter(samples)
        self._benchmark.pedantic(self._clock.advance, setup=lambda: ((next(rest),), {}), rounds=len(samples))

    def skip(self, reason: str) -> None:
        """Report that there is nothing to time, and why."""
        pytest.skip(reason)
