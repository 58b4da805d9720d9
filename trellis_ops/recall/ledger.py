"""Results in a file that only grows, one line each, so that a study may be stopped at any moment."""

from __future__ import annotations

import os
from pathlib import Path

from trellis_ops.recall.cell import Cell, Result
from trellis_ops.train.errors import CheckpointError


class Ledger:
    """The results of a study by their cells.

    Args:
        path: the file; made if it is not there. A last line without an end, of a process that was killed in the middle
            of it, is taken away.

    Raises:
        CheckpointError: a line that is no result.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_bytes() if path.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:
            os.truncate(path, len(whole))
        self._results: dict[str, Result] = {}
        for number, line in enumerate(whole.decode().splitlines(), start=1):
            try:
                result = Result.from_line(line)
            except (ValueError, TypeError, KeyError) as error:
                problem = f"line {number} is no result of this version ({error}); move the file away, or name another"
                raise CheckpointError(path=path, problem=problem) from error
            self._results[result.cell.key()] = result

    def __contains__(self, cell: Cell) -> bool:
        return cell.key() in self._results

    def results(self) -> list[Result]:
        """All of them, in the order in which they were found."""
        return list(self._results.values())

    def add(self, result: Result) -> None:
        """Append a result, on the disk when this returns."""
        with self._path.open("a") as file:
            file.write(result.to_line() + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._results[result.cell.key()] = result
