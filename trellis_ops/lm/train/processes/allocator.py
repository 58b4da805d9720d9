"""Memory that a training step frees, kept by the process for the next step.

A step asks for tensors of the same sizes as the step before. The C library would give large ones back to the system in
between, and every page of them would be mapped and cleared again, which costs as much as a quarter of a backward pass.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # Of malloc.h.
_MOST = 2**31 - 1
_MOST_MAPPED = 32 * 2**20  # Some versions of glibc refuse more.


def keep_freed_memory() -> bool:
    """Have the C library keep what this process frees; whether it is one that can be told (glibc)."""
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    mapped = any(mallopt(_M_MMAP_THRESHOLD, size) for size in (_MOST, _MOST_MAPPED))
    return bool(mallopt(_M_TRIM_THRESHOLD, _MOST)) and mapped
