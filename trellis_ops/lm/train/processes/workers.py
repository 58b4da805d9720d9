"""Processes that work side by side, one core each, and end with the process that started them, however that ended."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process

from trellis_ops.lm.train.errors import WorkerLostError


@contextlib.contextmanager
def pool(count: int) -> Iterator[ProcessPoolExecutor]:
    """`count` processes of one thread each; what stops the block stops them in the middle of their work.

    Raises:
        WorkerLostError: one of them ended without a result.
    """
    # Spawned: a forked child would hang in the thread pool of a compiled kernel.
    with ProcessPoolExecutor(count, get_context("spawn"), _begin) as executor:
        try:
            yield executor
        except BaseException as error:
            # The pool would wait for them.
            for child in active_children():
                child.terminate()
            if isinstance(error, BrokenProcessPool):
                raise WorkerLostError from error
            raise


def _begin() -> None:
    # Ctrl-C reaches every process of a terminal; the first one decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TVM_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
