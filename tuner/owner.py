"""Who runs a trial, and whether that process still lives."""

from __future__ import annotations

import functools
import os
import socket
from datetime import datetime, timedelta
from pathlib import Path

SILENT_FOR = timedelta(hours=1)
"""A running trial of another machine counts as lost after this long; no candidate takes a fraction of it."""

NAMELESS_FOR = timedelta(minutes=1)
"""A running trial without a name counts as lost after this long, where names are not written under a lock."""


@functools.cache
def this_process() -> str:
    """The text that names this process among all machines that share a storage: host, process id, start."""
    return f"{socket.gethostname()}|{os.getpid()}|{_started(os.getpid())}"


def is_lost(owner: str | None, started: datetime | None, now: datetime) -> bool:
    """Whether nobody works any more on a trial that `owner` began at `started`.

    A process of this machine is looked up; one of another machine is given `SILENT_FOR`.
    """
    age = timedelta(0) if started is None else now - started
    if owner is None:
        return age > NAMELESS_FOR
    host, process, start = owner.split("|")
    if host != socket.gethostname():
        return age > SILENT_FOR
    return not _is_alive(int(process)) or _started(int(process)) != start


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _started(process: int) -> str:
    # Process ids are given out again; the start in clock ticks since boot tells two holders apart where /proc exists.
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return ""
    return status.rpartition(")")[2].split()[19]
