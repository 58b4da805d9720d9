"""What a person sees while a search runs: a cotangent on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from tuner.duration import duration
from tuner.search.search import Status

_LINE_EVERY_SECONDS = 10.0


@dataclass(frozen=True)
class SlotStatus:
    """How far the study has come: points measured of all, and the share of the budget that is gone."""

    measured: int
    points: int
    share: float


class SearchProgress:
    """Shows the searches of several specs, one after another; a context manager.

    On a terminal there is one bar for each spec, with the current best, trials, failures by kind and the time left.
    Elsewhere a line is printed for a new best, at most every ten seconds.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[said]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._name = ""
        self._started = self._said = 0.0
        self._best: float | None = None

    def __enter__(self) -> SearchProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def begin(self, name: str) -> None:
        """A new spec."""
        self._name, self._best = name, None
        self._started = self._said = time.monotonic()
        self._task = self._bars.add_task(escape(name), total=1.0, left="", said="")
        if not self._console.is_terminal:
            self._console.print(f"{name}: searching", highlight=False)

    def show(self, status: Status) -> None:
        """Where the current spec's search is."""
        text = describe(status)
        if self._task is not None:
            self._bars.update(self._task, completed=status.share, said=escape(text), left=self._left(status))
        now = time.monotonic()
        if not self._console.is_terminal and status.best != self._best and now - self._said >= _LINE_EVERY_SECONDS:
            self._console.print(f"{self._name}: {text}", highlight=False, markup=False)
            self._said, self._best = now, status.best

    def show_slots(self, status: SlotStatus) -> None:
        """Where the study of slots and chunk size is."""
        if self._task is not None:
            text = f"{status.measured} of {status.points} points measured"
            self._bars.update(self._task, completed=status.share, said=text, left="")

    def end(self, text: str) -> None:
        """The current spec is done; `text` says with what result."""
        if self._task is not None:
            self._bars.update(self._task, completed=1.0, said=escape(text), left="")
        if not self._console.is_terminal:
            self._console.print(f"{self._name}: {text}", highlight=False, markup=False)

    def phase(self, text: str) -> None:
        """What the current spec is busy with beyond its trials."""
        if self._task is not None:
            self._bars.update(self._task, said=escape(text), left="")

    def _left(self, status: Status) -> str:
        elapsed = time.monotonic() - self._started
        if not 0.0 < status.share <= 1.0 or status.trials == 0:
            return ""
        return f"{elapsed * (1.0 - status.share) / status.share:.0f} s left"


def describe(status: Status) -> str:
    """A search in a line: best, trials, failures by kind."""
    best = "nothing right yet" if status.best is None else f"best {duration(status.best)}"
    if status.best is not None and status.default is not None:
        best += f", {status.default / status.best:.2f}x the default"
    failures = ", ".join(f"{count} {outcome.value}" for outcome, count in sorted(status.failures.items()))
    return f"{best}; {status.trials} of {status.points} tried" + (f" ({failures})" if failures else "")
