"""Imports that neither a fork nor Ctrl-C may come between.

A child that is forked while another thread imports a package finds it half made, and its lock held by a thread that it
does not have: its own import never ends. Importing a compiler takes seconds, so a fork waits until it is done.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from codegen.interruption.uninterrupted import uninterrupted

_LONGEST_IMPORT_SECONDS = 60.0

_importing = threading.RLock()


class _Fork(threading.local):
    """Whether the thread that looks holds `_importing` because it forks."""

    waited = False


_fork = _Fork()


@contextmanager
def whole_imports() -> Iterator[None]:
    """Within it this thread imports: Ctrl-C is answered at the end, and a fork by any other thread waits."""
    with uninterrupted(), _importing:
        yield


def _wait() -> None:
    # An import that hangs must not keep its process from forking.
    _fork.waited = _importing.acquire(timeout=_LONGEST_IMPORT_SECONDS)


def _go_on() -> None:
    if _fork.waited:
        _importing.release()
    _fork.waited = False


def _begin_anew() -> None:
    global _importing
    _importing = threading.RLock()
    _fork.waited = False


if hasattr(os, "register_at_fork"):  # Not on Windows, which has no fork.
    os.register_at_fork(before=_wait, after_in_parent=_go_on, after_in_child=_begin_anew)
