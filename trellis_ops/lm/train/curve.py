"""The loss curve: a CSV with one row per step, which a resumed run continues, and a picture of it."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from codegen.errors import MissingPackageError
from trellis_ops.files import regular_file
from trellis_ops.lm.train.errors import CheckpointError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Row:
    """One step.

    Attributes:
        step: counted from 1.
        epoch: passes through the text, the current one included.
        learning_rate: as used.
        bits_per_byte: of the batch, before the step.
        gradient_norm: before it was clipped.
        held_out: bits per byte of the held-out text after the step, where it was measured.
    """

    step: int
    epoch: int
    learning_rate: float
    bits_per_byte: float
    gradient_norm: float
    held_out: float | None = None

    def cells(self) -> list[str]:
        """As text; nine digits tell any two numbers of float32 apart."""
        values = asdict(self).values()
        return ["" if value is None else f"{value:.9g}" for value in values]


COLUMNS = tuple(field.name for field in fields(Row))


class Curve:
    """The file `curve.csv` of a run; a context manager.

    Args:
        path: the file.
        step: steps that are done; rows after it, of a run that was stopped after its last checkpoint, are dropped.
    """

    def __init__(self, path: Path, step: int) -> None:
        rows = [row for row in read(path) if row.step <= step] if path.exists() and step else []
        lines = [",".join(cells) for cells in (COLUMNS, *(row.cells() for row in rows))]
        regular_file.write(path, "\n".join(lines) + "\n")
        self._path, self._file = path, regular_file.open_to_append(path)

    def __enter__(self) -> Curve:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, row: Row) -> None:
        """Append a row; raises FileWriteError."""
        regular_file.append(self._file, self._path, (",".join(row.cells()) + "\n").encode())

    def keep(self) -> None:
        """Make sure that every row is on the disk, before a checkpoint says that its step is done."""
        os.fsync(self._file.fileno())


def read(path: Path) -> list[Row]:
    """The complete rows of a curve; the last one may have been cut off in the middle.

    Raises:
        CheckpointError: another line that is no row. IrregularFileError, OSError: no file that can be read.
    """
    # What follows the last end of a line is a row that was cut off.
    *lines, _ = regular_file.read_bytes(path).split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            cells = line.decode("ascii").split(",")
            if number == 1 and tuple(cells) == COLUMNS:
                continue
            step, epoch, *numbers, held_out = cells
            rate, bits, norm = map(float, numbers)
            rows.append(Row(int(step), int(epoch), rate, bits, norm, float(held_out) if held_out else None))
        except ValueError as error:
            problem = f"line {number} is no row of a curve ({error}); move the file away to go on with a new one"
            raise CheckpointError(path=path, problem=problem) from error
    return rows


def draw(rows: list[Row], path: Path, title: str) -> None:
    """Draw the curve into a PNG: every step's batch, and the held-out text where it was measured."""
    figure_of = require_matplotlib()
    figure = figure_of(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="bits per byte", title=title)
    axes.plot([row.step for row in rows], [row.bits_per_byte for row in rows], linewidth=0.7, label="batch")
    measured = {row.step: row.held_out for row in rows if row.held_out is not None}
    axes.plot(list(measured), list(measured.values()), marker="o", label="held out")
    axes.grid(alpha=0.3)
    axes.legend()
    with regular_file.replaced(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=120)


def require_matplotlib() -> type[Figure]:
    """The class of figures of matplotlib, which draws without a display."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackageError(package="matplotlib", extra="train") from error
    return Figure
