"""Samples of calls on a GPU: events around launches or around replays of a graph, with a cold L2 cache.

A call may come with others of its kind on inputs of their own (`Timed.others`). One after another they touch more
memory than the L2 cache holds, so that none finds there what the last one left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from tuner.measure.clocks import Clocks
from tuner.measure.timed import Timed, repeats_for


class Gpu(Protocol):
    """What a sampler needs of a GPU."""

    def seconds(self, work: Callable[[], object]) -> float:
        """The time between two events around what `work` puts on the stream."""

    def captured(self, runs: Sequence[Callable[[], object]]) -> Callable[[], object]:
        """A replay of all of `runs`, in order, from one graph."""


class TorchGpu:
    """The current GPU of torch."""

    def seconds(self, work: Callable[[], object]) -> float:
        """The time between two events around what `work` puts on the stream."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        work()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1000

    def captured(self, runs: Sequence[Callable[[], object]]) -> Callable[[], object]:
        """A replay of all of `runs`, in order, from one graph."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for run in runs:
                run()
        return graph.replay


@dataclass
class GpuSampler:
    """Takes times by events.

    Args:
        gpu: where.
        graph: whether launches are replayed from a graph.
        clocks: asked before and after each sample; a sample of a GPU that is throttled is none.
    """

    gpu: Gpu
    graph: bool
    clocks: Clocks | None
    _repeats: dict[str, int] = field(default_factory=dict)
    _replays: dict[str, Callable[[], object]] = field(default_factory=dict)

    def warm(self, name: str, call: Timed) -> None:
        """Run each twice, capture the graph, and see how many rounds fill a millisecond."""
        runs = (call.run, *call.others)
        for _ in range(2):
            call.reset()
            once = self.gpu.seconds(lambda: _all(runs))
        if self.graph:
            self._replays[name] = self.gpu.captured(runs)
        self._repeats[name] = repeats_for(once)

    def sample(self, name: str, call: Timed) -> float | None:
        """Seconds per call; None if the GPU was throttled."""
        call.reset()
        runs = (call.run, *call.others)
        work = self._replays[name] if self.graph else lambda: _all(runs)
        repeats = self._repeats[name]
        before = self._is_held_back()
        seconds = self.gpu.seconds(lambda: _all([work] * repeats))
        if before or self._is_held_back():
            return None
        return seconds / repeats / len(runs)

    def _is_held_back(self) -> bool:
        return self.clocks is not None and bool(self.clocks.read().held_back())


def copies_past_cache(bytes_of_one: int, cache_bytes: int) -> int:
    """How many sets of inputs it takes so that all but one are twice the cache: one at least."""
    return 1 + -(-2 * cache_bytes // max(1, bytes_of_one))


def _all(runs: Sequence[Callable[[], object]]) -> None:
    for run in runs:
        run()
