"""Work that no fork may come between: imports and compiles.

A child that is forked while another thread imports a module finds it half made, and its lock held by a thread that the
child does not have: the child's own import never ends. The same holds for the locks inside of a compiler. So a fork
waits until such work is done.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Work that hangs must not keep its process from forking.
_LONGEST_WAIT_SECONDS = 60.0

_working = threading.RLock()


class _Fork(threading.local):
    """Whether the thread that looks holds `_working` because it forks."""

    waited = False


_fork = _Fork()


@contextmanager
def unforked() -> Iterator[None]:
    """Within it a fork by any other thread waits, and so does the `unforked` of any other thread."""
    with _working:
        yield


def _wait() -> None:
    _fork.waited = _working.acquire(timeout=_LONGEST_WAIT_SECONDS)


def _go_on() -> None:
    if _fork.waited:
        _working.release()
    _fork.waited = False


def _begin_anew() -> None:
    global _working
    _working = threading.RLock()
    _fork.waited = False


if hasattr(os, "register_at_fork"):  # Not on Windows, which has no fork.
    os.register_at_fork(before=_wait, after_in_parent=_go_on, after_in_child=_begin_anew)
