"""What this process holds in memory."""

from __future__ import annotations

import re
import resource
from pathlib import Path

_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_FORGET_PEAK = "5"  # What proc(5) says: the peak becomes what is resident now.


def peak_bytes() -> int:
    """The most that was resident since the start, or since `forget_peak`."""
    return _read("VmHWM") if _STATUS.exists() else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def resident_bytes() -> int:
    """What is resident now; where the system does not say (no Linux), the peak."""
    return _read("VmRSS") if _STATUS.exists() else peak_bytes()


def forget_peak() -> None:
    """Let the peak begin anew, where the system allows it (Linux)."""
    if _CLEAR_REFS.exists():
        _CLEAR_REFS.write_text(_FORGET_PEAK)


def _read(name: str) -> int:
    (kilobytes,) = re.findall(rf"^{name}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    return 1024 * int(kilobytes)
