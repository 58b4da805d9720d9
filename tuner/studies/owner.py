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

_PARTS, _PLACE_PARTS = 5, 3
_MOST_DIGITS = 10


@functools.cache
def this_process() -> str:
    """The text that names this process among all that share a storage: host, boot, PID namespace, process id, start.

    Containers may share a name of the host, and then give out the same process ids: only where boot and namespace agree
    too can a process be looked up.
    """
    return "|".join((*_place(), str(os.getpid()), _started(os.getpid())))


def is_lost(owner: object, started: datetime | None, now: datetime, *, beats: bool = False) -> bool:
    """Whether nobody works any more on a trial that `owner` began at `started`.

    A process that can be looked up from here is. Another one is given `SILENT_FOR`, unless the storage keeps the beats
    of its heart: those say more than clocks, which two machines may set to other time zones.

    Args:
        owner: what `this_process` said there; None if nobody has signed, anything else is of another version.
        started, now: by the clocks of the two machines.
        beats: whether the storage knows when the owner was last alive.
    """
    # A start that lies ahead is a clock that is wrong, and must not make anyone wait for ever.
    age = timedelta(0) if started is None else abs(now - started)
    if owner is None:
        return age > NAMELESS_FOR
    parts = owner.split("|") if isinstance(owner, str) else []
    known = len(parts) == _PARTS and parts[3].isdecimal() and len(parts[3]) <= _MOST_DIGITS
    if not known or tuple(parts[:_PLACE_PARTS]) != _place():
        return age > SILENT_FOR and not beats
    process, start = int(parts[3]), parts[4]
    return not _is_alive(process) or _started(process) != start


@functools.cache
def _place() -> tuple[str, str, str]:
    """Within what a process id names one process: the host, since when it runs, and the namespace of process ids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        boot = namespace = ""  # No Linux: there are no namespaces.
    return socket.gethostname(), boot, namespace


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
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
