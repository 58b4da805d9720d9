"""Reading a prompt of any length in pieces, which bounds the memory that it takes, with a progress bar."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from trellis_ops.lm.model import TrellisLM
from trellis_ops.lm.state import TrellisState

PIECE = 4096
"""Tokens of a piece, rounded up to whole chunks."""

_LINE_EVERY_SECONDS = 5.0


def read_to_last_piece(
    model: TrellisLM, tokens: Tensor, state: TrellisState | None = None
) -> tuple[Tensor, TrellisState | None]:
    """The last piece of `tokens [1, T]`, which is left to be read, and the state before it; shows how far it is."""
    piece, total = _piece(model), tokens.shape[1]
    last = (total - 1) // piece * piece
    return tokens[:, last:], read(model, tokens[:, :last], state, total) if last else state


@torch.no_grad()
def read(model: TrellisLM, tokens: Tensor, state: TrellisState | None = None, total: int | None = None) -> TrellisState:
    """The state after `tokens [B, T]`, which are read in pieces; shows how many of `total` tokens are read."""
    piece = _piece(model)
    with PrefillProgress(total or tokens.shape[1]) as progress:
        for start in range(0, tokens.shape[1], piece):
            progress.show(start)
            _, state = model(tokens[:, start : start + piece], state, logits_to_keep=1)
        progress.show(tokens.shape[1])
    assert state is not None
    return state


def _piece(model: TrellisLM) -> int:
    """`PIECE`, rounded up to whole chunks."""
    chunk = model.config.chunk
    return -(-PIECE // chunk) * chunk


class PrefillProgress:
    """Shows on the standard error how much of a prompt has been read; a context manager.

    A bar on a terminal where the package `rich` is installed, a line every few seconds elsewhere, and nothing for a
    prompt of one piece.
    """

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._spoken = time.monotonic()
        self._bar: Any = _bar() if tokens > PIECE and sys.stderr.isatty() else None
        self._task = None if self._bar is None else self._bar.add_task("reading the prompt", total=tokens)

    def __enter__(self) -> PrefillProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, done: int) -> None:
        """So many tokens have been read."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
        elif done and time.monotonic() - self._spoken >= _LINE_EVERY_SECONDS:
            print(f"{done:,} of {self._tokens:,} tokens of the prompt are read", file=sys.stderr)
            self._spoken = time.monotonic()


def _bar() -> Any:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        return None
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)
