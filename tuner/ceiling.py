"""What this machine can do at most, measured in the same run: a matrix product for compute, moved bytes for memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from codegen.device import Device
from tuner.cost import Cost
from tuner.measure import Timed, measure

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
    where = "cpu" if device.kind == "cpu" else "cuda"
    product_type = torch.float32 if device.kind == "cpu" else getattr(torch, dtype)
    size = min(max(moved, _SMALLEST_MOVE), _LARGEST_MOVE) if device.kind == "cpu" else _LARGEST_MOVE
    return Ceiling(_best_product(device, where, product_type), _bandwidth(device, where, (size - 1).bit_length()))


def ceiling_again(device: Device, dtype: str, moved: int) -> Ceiling:
    """The same, but measured anew, for what is timed now on a machine whose speed changes."""
    _best_product.cache_clear()
    _bandwidth.cache_clear()
    return ceiling_of(device, dtype, moved)


@cache
def _best_product(device: Device, where: str, dtype: torch.dtype) -> float:
    rates = []
    for side in _SIDES[device.kind]:
        left = torch.randn(side, side, dtype=torch.float32, device=where).to(dtype)
        right, product = torch.randn_like(left), torch.empty_like(left)
        seconds = _time(device, lambda a=left, b=right, c=product: torch.mm(a, b, out=c))  # type: ignore[misc]
        rates.append(2 * side**3 / seconds)
    return max(rates)


@cache
def _bandwidth(device: Device, where: str, size_bits: int) -> float:
    # Half is read and half is written; sizes are rounded to powers of two so that few probes serve all specs.
    count = (1 << size_bits) // 8
    source, target = torch.randn(count, device=where), torch.empty(count, device=where)
    # A decode step rewrites its states in place, which takes half the cache that a copy of as many bytes takes.
    probes = (lambda: target.copy_(source), lambda: source.mul_(1.0))
    rate = 8 * count / min(_time(device, probe) for probe in probes)
    if device.kind != "cpu":
        return rate
    # What fits a core's own cache is moved faster by one thread than by several that must meet.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return max(rate, 8 * count / min(_time(device, probe) for probe in probes))
    finally:
        torch.set_num_threads(threads)


def _time(device: Device, run: Callable[[], object]) -> float:
    timing = measure({"probe": Timed(run, lambda: None)}, device, seconds=_SECONDS, rounds=_ROUNDS)["probe"]
    return min(timing.samples)
