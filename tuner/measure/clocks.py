"""Is a GPU throttled? Its clock and the reasons for a lower one, as NVML tells them."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Protocol

HELD_BACK = {
    0x0000000000000008: "hardware slowdown",
    0x0000000000000020: "software thermal slowdown",
    0x0000000000000040: "hardware thermal slowdown",
    0x0000000000000080: "power brake",
}
"""NVML's reasons (nvmlClocksEventReason*) for which a sample says nothing about the kernel. A power cap is not among
them: under a load that lasts, it is how the card runs."""


@dataclass(frozen=True)
class Reading:
    """One look at a GPU.

    Attributes:
        sm_mhz: clock of the multiprocessors.
        reasons: NVML's bits of why it is not higher.
    """

    sm_mhz: int
    reasons: int

    def held_back(self) -> list[str]:
        """The reasons of `HELD_BACK` that hold."""
        return [text for bit, text in HELD_BACK.items() if self.reasons & bit]


class Clocks(Protocol):
    """Something that reads a GPU's clock."""

    def read(self) -> Reading:
        """The clock now, and why it is not higher."""


class NvmlClocks:
    """The clock of GPU number `index` through the package nvidia-ml-py."""

    def __init__(self, nvml: Any, index: int) -> None:
        self._nvml = nvml
        nvml.nvmlInit()
        self._handle = nvml.nvmlDeviceGetHandleByIndex(index)

    def read(self) -> Reading:
        """The clock now, and why it is not higher."""
        clock = self._nvml.nvmlDeviceGetClockInfo(self._handle, self._nvml.NVML_CLOCK_SM)
        return Reading(int(clock), int(self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle)))


def clocks_of(index: int) -> Clocks | None:
    """The clock of a GPU; None where nvidia-ml-py is not installed, so that no sample is discarded."""
    try:
        return NvmlClocks(importlib.import_module("pynvml"), index)
    except ImportError:
        return None
