"""Which threads have a pool of TVM's threads of their own, and who runs kernels for the others.

TVM makes a pool for every thread that calls it, of as many threads as there are cores. A pool ends with its thread, but
later: its workers spin for a while before they see that they are to end, and where one short-lived thread follows
another, they pile up by the hundred. So the main thread has a pool, and a few others while they last; the kernels of
the rest are run by a few *hands*, threads of this module, which costs two changes of thread. Where all of them are busy
the cores are, too, and a kernel waits for its turn.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue

from codegen.device import cpu

_MOST_OWNERS = 8
_MOST_WORKERS = 96
"""Threads in the pools of all owners but the main thread, about; one owner may have more."""

_MOST_HANDS = 2


class _Job:
    """Something to be done by a hand."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work
        self.error: BaseException | None = None
        self.done = threading.Lock()
        self.done.acquire()

    def run(self) -> None:
        try:
            self.work()
        except BaseException as error:
            self.error = error
        finally:
            self.done.release()


class _Hand(threading.Thread):
    """A thread that runs kernels for others, one after another, until the process ends."""

    def __init__(self, jobs: SimpleQueue[_Job]) -> None:
        super().__init__(name="trellis-ops kernels", daemon=True)
        self._jobs = jobs

    def run(self) -> None:
        while True:
            # In no variable: what a job holds goes with it, not with the next one.
            self._jobs.get().run()


class _Threads:
    """The threads of this process that have pools.

    Attributes:
        lock: held while the rest changes.
        owners: numbers, as the system knows them, of those that `may_own` has let have one.
        hands: how many there are.
        jobs: what they do next.
        waiting: jobs that are not done.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.owners: list[int] = []
        self.hands = 0
        self.jobs: SimpleQueue[_Job] = SimpleQueue()
        self.waiting = 0


_threads = _Threads()


def most_owners() -> int:
    """How many threads beside the main thread have pools at a time, hands not counted."""
    return max(1, min(_MOST_OWNERS, _MOST_WORKERS // max(1, cpu().cores - 1)))


def may_own() -> bool:
    """Whether the calling thread may have a pool; one that may has it until its end."""
    thread = threading.current_thread()
    if thread is threading.main_thread() or isinstance(thread, _Hand):
        return True
    with _threads.lock:
        # A thread is there until its pool is gone.
        _threads.owners = [each for each in _threads.owners if os.path.exists(f"/proc/self/task/{each}")]
        if len(_threads.owners) >= most_owners():
            return False
        _threads.owners.append(threading.get_native_id())
    return True


def lend(work: Callable[[], None]) -> bool:
    """Have a hand do `work`, and wait for it; False, and nothing was done, if the system has no thread left for one.

    Raises:
        Exception: what `work` raises.
    """
    threads = _threads
    with threads.lock:
        if threads.waiting >= threads.hands and not _has_another_hand(threads):
            return False
        threads.waiting += 1
    job = _Job(work)
    try:
        threads.jobs.put(job)
        job.done.acquire()
    finally:
        with threads.lock:
            threads.waiting -= 1
    if job.error is not None:
        raise job.error
    return True


def _has_another_hand(threads: _Threads) -> bool:
    """Whether there is one after all; if there may be more, one more is made."""
    if threads.hands < min(_MOST_HANDS, most_owners()):
        try:
            _Hand(threads.jobs).start()
        except RuntimeError:
            return threads.hands > 0
        threads.hands += 1
    return threads.hands > 0


def forget_threads() -> None:
    """In a forked child, which has none of them."""
    global _threads
    _threads = _Threads()
