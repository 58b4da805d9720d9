"""Training many cells side by side, each on one core, within a time, keeping every result at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from pathlib import Path

from codegen.device import cpu
from trellis_ops.lm.recall.cell import Cell, Result
from trellis_ops.lm.recall.ledger import Ledger
from trellis_ops.lm.train.processes.workers import pool


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
    with pool(count) as executor:
        running: set[Future[Result]] = set()
        while running or (left and time.monotonic() < deadline):
            while left and len(running) < count and time.monotonic() < deadline:
                running.add(executor.submit(_learn, left.pop(0), data))
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                keep(future.result())
    return not left


def time_again(results: Sequence[Result], ledger: Ledger, show: Callable[[Progress], None]) -> None:
    """Take the time of a token of each model that has one again, one after another on one core, and keep it.

    It does not depend on what a model has learned, so that none is trained. On a machine where nothing else runs it is
    the time of the model, where `study` takes it beside models that are trained on the other cores.
    """
    timed = [each for each in results if each.decode_us is not None]
    with pool(1) as executor:
        for done, result in enumerate(timed, start=1):
            newer = replace(result, decode_us=executor.submit(_decode_us, result.cell).result())
            ledger.add(newer)
            show(Progress(done, len(timed), newer))


def _decode_us(cell: Cell) -> float:
    # As in `_learn`.
    from trellis_ops.lm.recall.learning import untrained_cost

    return untrained_cost(cell).decode_us


def _learn(cell: Cell, data: Sequence[Path]) -> Result:
    # Imported here, after the threads of a worker are set.
    from trellis_ops.lm.recall.learning import learn

    return learn(cell, data)
