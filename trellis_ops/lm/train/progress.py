"""What a person sees of a run: a cotangent on a terminal, plain lines anywhere else, nothing from further processes."""

from __future__ import annotations

import time
from types import TracebackType

from codegen.errors import MissingPackageError
from trellis_ops.lm.train.curve import Row

_LINE_EVERY_SECONDS = 15.0


class TrainingProgress:
    """Shows the steps of a run; a context manager.

    Args:
        steps: of the whole run.
        done: how many of them are done already.
        tokens: in a step.
        visible: whether to show anything.
    """

    def __init__(self, steps: int, done: int, tokens: int, visible: bool = True) -> None:
        try:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        except ImportError as error:
            raise MissingPackageError(package="rich", extra="train") from error
        self._steps, self._done, self._tokens, self._visible = steps, done, tokens, visible
        self._console = Console(highlight=False, soft_wrap=True)
        self._bar = Progress(
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TimeRemainingColumn(),
            TextColumn("{task.fields[said]}"),
            console=self._console,
            disable=not (visible and self._console.is_terminal),
        )
        self._task = self._bar.add_task("steps", total=steps, completed=done, said="")
        self._started = self._spoken = time.monotonic()
        self._held_out: float | None = None

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, row: Row) -> None:
        """A step is done."""
        self._held_out = self._held_out if row.held_out is None else row.held_out
        now = time.monotonic()
        speed = (row.step - self._done) * self._tokens / max(now - self._started, 1e-9)
        held_out = "" if self._held_out is None else f", held out {self._held_out:.3f}"
        text = f"{row.bits_per_byte:.3f} bits per byte{held_out}, {speed:,.0f} tokens/s"
        self._bar.update(self._task, completed=row.step, said=text)
        due = row.held_out is not None or now - self._spoken >= _LINE_EVERY_SECONDS
        if self._visible and not self._console.is_terminal and due:
            self._console.print(f"step {row.step} of {self._steps}: {text}", markup=False)
            self._spoken = now
