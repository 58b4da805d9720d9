"""What this machine can do at most, measured in the same run: a matrix product for compute, moved bytes for memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch

from codegen.device import Device
from tuner.measure.cost import Cost
from tuner.measure.measure import measure
from tuner.measure.timed import Timed

_SIDES = {"cpu": (256, 512, 768, 1024), "cuda": (4096, 8192), "hip": (4096, 8192)}
_SECONDS = 0.25
_ROUNDS = 200
_SMALLEST_MOVE = 1 << 16
_LARGEST_MOVE = 1 << 28


@dataclass(frozen=True)
class Ceiling:
    """Measured limits.

    Attributes:
        flops: floating-point operations per second of a matrix product.
        bandwidth: bytes per second, those read and those written, of a copy or of a scaling in place.
    """

    flops: float
    bandwidth: float

    def share(self, cost: Cost, seconds: float) -> float:
        """The share of the nearer limit that `cost` in `seconds` reaches; above 1 if a probe was disturbed."""
        return max(cost.flops / self.flops, cost.bytes / self.bandwidth) / seconds

    def or_better(self, other: Ceiling) -> Ceiling:
        """The higher of each limit: what disturbs a probe can only lower it."""
        return Ceiling(max(self.flops, other.flops), max(self.bandwidth, other.bandwidth))


def ceiling_of(device: Device, dtype: str, moved: int) -> Ceiling:
    """The limits that a kernel for `dtype` has which moves `moved` bytes.

    A CPU computes in float32 whatever the inputs are, so its product is of float32. There the probes of memory move as
    many bytes as the kernel does, so that they use the same caches; on a GPU, where kernels find their inputs in none,
    they move more than a cache holds.
    """
    # A CPU computes in one type, and sizes are rounded, so few probes serve all specs.
    product_type = "float32" if device.kind == "cpu" else dtype
    return Ceiling(_best_product(device, product_type), _bandwidth(device, _moved(device, moved)))


def ceiling_again(device: Device, dtype: str, moved: int) -> Ceiling:
    """The same, but measured anew, for what is timed now on a machine whose speed changes."""
    _best_product.cache_clear()
    _bandwidth.cache_clear()
    return ceiling_of(device, dtype, moved)


@dataclass(frozen=True)
class Probe:
    """A call that nothing but one of the limits holds up.

    Attributes:
        run: one call.
        work: its floating-point operations, or the bytes that it reads and writes.
        threads: how many torch must use for it; None for as many as it does.
    """

    run: Callable[[], object]
    work: int
    threads: int | None = None

    def rate(self, device: Device) -> float:
        """Its work per second at best."""
        with self.on_its_threads():
            timing = measure({"probe": Timed(self.run, lambda: None)}, device, seconds=_SECONDS, rounds=_ROUNDS)
        return self.work / min(timing["probe"].samples)

    @contextmanager
    def on_its_threads(self) -> Iterator[None]:
        """Where `run` may be called."""
        if self.threads is None:
            yield
            return
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def limits(device: Device, dtype: str, cost: Cost) -> tuple[tuple[Probe, float], ...]:
    """For compute and for memory the probe with the highest rate, and how many times its work is that of `cost`."""
    found = []
    for probes, needed in (
        (_products(device, dtype), cost.flops),
        (_moves(device, _moved(device, cost.bytes)), cost.bytes),
    ):
        _, best = max(((probe.rate(device), probe) for probe in probes), key=lambda rated: rated[0])
        found.append((best, needed / best.work))
    return tuple(found)


@cache
def _best_product(device: Device, dtype: str) -> float:
    return max(probe.rate(device) for probe in _products(device, dtype))


@cache
def _bandwidth(device: Device, moved: int) -> float:
    return max(probe.rate(device) for probe in _moves(device, moved))


def _products(device: Device, dtype: str) -> Iterator[Probe]:
    product_type = torch.float32 if device.kind == "cpu" else getattr(torch, dtype)
    for side in _SIDES[device.kind]:
        left = torch.randn(side, side, device=_where(device)).to(product_type)
        right, product = torch.randn_like(left), torch.empty_like(left)
        yield Probe(functools.partial(torch.mm, left, right, out=product), 2 * side**3)


def _moves(device: Device, moved: int) -> Iterator[Probe]:
    # Half is read and half is written.
    count = moved // 8
    source, target = torch.randn(count, device=_where(device)), torch.empty(count, device=_where(device))
    # What fits a core's own cache is moved faster by one thread than by several that must meet.
    for threads in (None, 1) if device.kind == "cpu" else (None,):
        yield Probe(functools.partial(target.copy_, source), 8 * count, threads)
        # A decode step rewrites its states in place, which takes half the cache that a copy of as many bytes takes.
        yield Probe(functools.partial(source.mul_, 1.0), 8 * count, threads)


def _moved(device: Device, moved: int) -> int:
    size = min(max(moved, _SMALLEST_MOVE), _LARGEST_MOVE) if device.kind == "cpu" else _LARGEST_MOVE
    return 1 << (size - 1).bit_length()


def _where(device: Device) -> str:
    return "cpu" if device.kind == "cpu" else "cuda"
