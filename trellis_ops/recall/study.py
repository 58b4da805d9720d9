"""Training many cells side by side, each on one core, within a time, keeping every result at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path

from codegen.device import cpu
from trellis_ops.recall.cell import Cell, Result
from trellis_ops.recall.ledger import Ledger


@dataclass(frozen=True)
class Progress:
    """How far a study is: cells with results, of all, and the newest result."""

    done: int
    cells: int
    newest: Result


def study(
    cells: Sequence[Cell],
    ledger: Ledger,
    data: Sequence[Path],
    show: Callable[[Progress], None],
    minutes: float | None = None,
    workers: int | None = None,
) -> bool:
    """Train the cells that have no result yet; whether all have one now.

    Args:
        cells: what to train, the first first.
        ledger: where results are kept.
        data: text for the cells of the task "text".
        show: told after each result.
        minutes: no cell is begun after so many; those that run are finished.
        workers: processes; None is one for each core. With 0, cells are trained in this process.
    """
    left = [cell for cell in cells if cell not in ledger]
    done, deadline = len(cells) - len(left), time.monotonic() + 60.0 * (float("inf") if minutes is None else minutes)

    def keep(result: Result) -> None:
        nonlocal done
        done += 1
        ledger.add(result)
        show(Progress(done, len(cells), result))

    if workers == 0:
        while left and time.monotonic() < deadline:
            keep(_learn(left.pop(0), data))
        return not left
    count = max(1, min(workers or cpu().cores, len(left)))
    # Spawned: a forked child would hang in the thread pool of a compiled kernel.
    with ProcessPoolExecutor(count, get_context("spawn"), _begin_worker) as pool, _ending_children():
        running: set[Future[Result]] = set()
        while running or (left and time.monotonic() < deadline):
            while left and len(running) < count and time.monotonic() < deadline:
                running.add(pool.submit(_learn, left.pop(0), data))
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                keep(future.result())
    return not left


@contextlib.contextmanager
def _ending_children() -> Iterator[None]:
    """What stops the study stops its cells; otherwise the pool would wait for them."""
    try:
        yield
    except BaseException:
        for child in active_children():
            child.terminate()
        raise


def _begin_worker() -> None:
    """One thread for the work, and one that ends this process with the one that started it, however that ended."""
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


def _learn(cell: Cell, data: Sequence[Path]) -> Result:
    # Imported here, after the threads of a worker are set.
    from trellis_ops.recall.learning import learn

    return learn(cell, data)
