"""Interruptions that cannot get lost."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_requested = threading.Event()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within it SIGINT and SIGTERM raise KeyboardInterrupt, now or at the next `stop_if_interrupted`.

    Python drops an exception that a signal handler raises while a finalizer or a weak reference's callback runs, and a
    search is full of both; what was asked for is therefore remembered, too.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        _requested.set()
        raise KeyboardInterrupt

    before = {each: signal.signal(each, interrupt) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        _requested.clear()


def stop_if_interrupted() -> None:
    """Between two steps of long work: end it if an interruption was asked for and dropped.

    Raises:
        KeyboardInterrupt: it was.
    """
    if _requested.is_set():
        raise KeyboardInterrupt
