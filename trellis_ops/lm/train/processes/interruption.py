"""Ctrl-C while a model learns: the step under way is finished, so that nothing that was learned is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

_SAID = b"\ninterrupted: the step under way is finished and saved; Ctrl-C again stops at once\n"


class Interruption:
    """What `deferred` yields.

    Attributes:
        requested: whether Ctrl-C was pressed.
    """

    def __init__(self) -> None:
        self.requested = False


@contextlib.contextmanager
def deferred(processes: int) -> Iterator[Interruption]:
    """Within it the first Ctrl-C is only noted; the second raises KeyboardInterrupt as ever.

    Of several processes none may stop where the others go on, and where Ctrl-C is ignored, as in a pool's worker, or is
    another's to handle, it stays so.
    """
    asked = Interruption()
    own = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if processes > 1 or not own or threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, frame: FrameType | None) -> None:
        asked.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # Not `print`: the handler may run in the middle of one. Without a terminal nobody could have pressed the keys.
        if sys.stderr.isatty():
            os.write(sys.stderr.fileno(), _SAID)

    signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
