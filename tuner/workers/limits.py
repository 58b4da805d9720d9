"""What a candidate may take before it is stopped: time for each phase of its work, and memory."""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass, field

_GIBIBYTE = 2**30
_RESIDENT, _DATA = 1, 5


def _half_of_memory() -> int:
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(2 * _GIBIBYTE, physical // 2)


@dataclass(frozen=True)
class Limits:
    """Limits of one worker.

    Attributes:
        compile_seconds: from template to kernel, for one candidate.
        run_seconds: checking a candidate, and timing one; each for itself.
        memory_bytes: what a worker may allocate beyond what it has when it is ready; half of the machine's memory,
            at least 2 GiB, unless given.
    """

    compile_seconds: float = 120.0
    run_seconds: float = 60.0
    memory_bytes: int = field(default_factory=_half_of_memory)

    def seconds(self, phase: str) -> float:
        """How long `phase` may last: "compiling", or any other."""
        return self.compile_seconds if phase == "compiling" else self.run_seconds


def limit_memory(more_bytes: int) -> None:
    """Let this process allocate `more_bytes` beyond what it has now, and leave no core dumps.

    What counts is writable private memory (RLIMIT_DATA), not address space, of which a GPU's driver reserves terabytes.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = _data_bytes() + more_bytes
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def resident_bytes() -> int:
    """The memory that this process has in use."""
    return _pages(_RESIDENT)


def peak_bytes(usage: resource.struct_rusage) -> int:
    """The most memory that a process had in use, or the one that started it when it did, if that is more."""
    return usage.ru_maxrss * 1024


def _data_bytes() -> int:
    return _pages(_DATA)


def _pages(column: int) -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[column]) * os.sysconf("SC_PAGE_SIZE")
