"""Threads of kernels on cores of their own, as long as times are taken.

TVM's own pinning (TVM_BIND_THREADS=1) counts cores from 0 and so leaves those that a container or `taskset` gave. Here
the threads that a first run of a kernel starts are found by looking, and set one to each core that this process may
use, physical cores before their second threads. Torch's threads, and those of anything else, stay free.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from codegen.device import cpu
from codegen.errors import SizeError

_TASKS = Path("/proc/self/task")
_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


class Pinning:
    """The threads of this process that run kernels. Does nothing where the system has no affinities."""

    def __init__(self) -> None:
        self._workers: list[int] = []

    def started_by(self, run: Callable[[], object]) -> None:
        """Do `run`, and count the threads that it starts among those that run kernels."""
        before = _threads()
        run()
        self._workers += sorted(_threads() - before)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it the calling thread and the threads of kernels keep to one core each."""
        if not hasattr(os, "sched_setaffinity"):
            yield
            return
        before = os.sched_getaffinity(0)
        cores = ordered_cores(before)
        for place, thread in enumerate((0, *self._workers)):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread, {cores[place % len(cores)]})
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)


def keep_to(cores: int) -> None:
    """Keep this process, and those that it starts, to so many cores, as a server keeps a worker.

    Called before kernels are compiled: threads that run already stay where they are.

    Raises:
        SizeError: more cores than this process may use, fewer than one, or a system without affinities.
    """
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else set()
    if not 1 <= cores <= len(usable):
        expected = f"1 to {len(usable)}, the cores that this process may use and be kept to"
        raise SizeError(name="cores", value=cores, expected=expected)
    os.sched_setaffinity(0, ordered_cores(usable)[:cores])
    cpu.cache_clear()


def ordered_cores(usable: set[int]) -> tuple[int, ...]:
    """The cores of `usable`, one of each physical core first."""
    first: list[int] = []
    second: list[int] = []
    seen: set[str] = set()
    for core in sorted(usable):
        siblings = _siblings(core)
        (second if siblings in seen else first).append(core)
        seen.add(siblings)
    return (*first, *second)


def _siblings(core: int) -> str:
    try:
        return Path(_SIBLINGS.format(core)).read_text().strip()
    except OSError:
        return str(core)


def _threads() -> set[int]:
    return {int(path.name) for path in _TASKS.iterdir()} if _TASKS.exists() else set()
