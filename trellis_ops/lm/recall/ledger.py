"""Results in a file that only grows, one line each, so that a study may be stopped at any moment."""

from __future__ import annotations

import os
from pathlib import Path

from trellis_ops.files import regular_file
from trellis_ops.lm.recall.cell import Cell, Result
from trellis_ops.lm.train.errors import CheckpointError

_NO_RESULT = (ValueError, TypeError, KeyError, AttributeError, RecursionError)


class Ledger:
    """The results of a study by their cells; `saving.exclusive` sees to it that one process writes to it.

    Args:
        path: the file; made if it is not there. A last line without an end, of a process that was killed in the middle
            of it, is taken away, unless it is a whole result.

    Raises:
        CheckpointError: a line that is no result. IrregularFileError, OSError: no file that can be read and written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        *lines, last = (regular_file.read_bytes(path) if path.exists() else b"").split(b"\n")
        self._results: dict[str, Result] = {}
        for number, line in enumerate(lines, start=1):
            try:
                self._know(_result(line))
            except _NO_RESULT as error:
                problem = f"line {number} is no result of this version ({error}); move the file away, or name another"
                raise CheckpointError(path=path, problem=problem) from error
        if last:
            self._end(last)

    def __contains__(self, cell: Cell) -> bool:
        return cell.key() in self._results

    def results(self) -> list[Result]:
        """All of them, in the order in which they were found."""
        return list(self._results.values())

    def add(self, result: Result) -> None:
        """Append a result, on the disk when this returns.

        Raises:
            FileWriteError: it could not be written; the file is as it was.
        """
        self._append(result.to_line().encode() + b"\n")
        self._know(result)

    def _know(self, result: Result) -> None:
        self._results[result.cell.key()] = result

    def _end(self, last: bytes) -> None:
        """A last line that has no end: an editor may have left it out, or a kill."""
        try:
            self._know(_result(last))
        except _NO_RESULT:
            os.truncate(self._path, self._path.stat().st_size - len(last))
        else:
            self._append(b"\n")

    def _append(self, data: bytes) -> None:
        with regular_file.open_to_append(self._path) as file:
            regular_file.append(file, self._path, data, sync=True)


def _result(line: bytes) -> Result:
    return Result.from_line(line.decode())
