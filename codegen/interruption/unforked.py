"""Work that no fork may come between: imports and compiles.

A child that is forked while another thread imports a module finds it half made, and its lock held by a thread that the
child does not have: the child's own import never ends. The same holds for the locks inside of a compiler, and for those
that torch takes when an operator of its own is called for the first time. So a fork waits until such work is done, and
the thread whose work it was goes on when the fork is over: the next operator of torch would be the one that is forked.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Work that hangs must not keep its process from forking.
_LONGEST_WAIT_SECONDS = 60.0

_working = threading.RLock()
_forking = threading.Lock()


class _Thread(threading.local):
    """What the thread that looks has to do with the locks.

    Attributes:
        depth: how many `unforked` it is in.
        forks: whether it holds `_forking`.
        waited: whether it holds `_working` because it forks.
    """

    depth = 0
    forks = False
    waited = False


_thread = _Thread()


@contextmanager
def unforked() -> Iterator[None]:
    """Within it a fork by any other thread waits, and so does the `unforked` of any other thread.

    At its end a fork that waits goes first.
    """
    with _working:
        _thread.depth += 1
        try:
            yield
        finally:
            _thread.depth -= 1
    if _thread.depth == 0:
        with _forking:
            pass


def _wait() -> None:
    # A fork in the middle of its own thread's work must not wait for one that waits for that work.
    _thread.forks = _thread.depth == 0 and _forking.acquire(timeout=_LONGEST_WAIT_SECONDS)
    _thread.waited = _working.acquire(timeout=_LONGEST_WAIT_SECONDS)


def _go_on() -> None:
    if _thread.waited:
        _working.release()
    if _thread.forks:
        _forking.release()
    _thread.forks = _thread.waited = False


def _begin_anew() -> None:
    global _working, _forking
    _working, _forking = threading.RLock(), threading.Lock()
    _thread.forks = _thread.waited = False


if hasattr(os, "register_at_fork"):  # Not on Windows, which has no fork.
    os.register_at_fork(before=_wait, after_in_parent=_go_on, after_in_child=_begin_anew)
