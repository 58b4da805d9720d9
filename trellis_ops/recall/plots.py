"""Results as pictures: accuracy against pairs, and against pairs per slot."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trellis_ops.recall.cell import Result
from trellis_ops.recall.tables import grouped
from trellis_ops.train.curve import require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = dict[float, float]
"""From pairs, or pairs per slot, to accuracy."""


def draw_curves(results: Sequence[Result], path: Path) -> None:
    """One panel for each C: accuracy against pairs, one line for each phi and M."""
    chunks = sorted({each.cell.chunk for each in results})
    figure = require_matplotlib()(figsize=(4.2 * max(1, len(chunks)), 3.8), layout="constrained")
    for place, chunk in enumerate(chunks, start=1):
        axes = figure.add_subplot(1, len(chunks), place, title=f"C = {chunk}")
        found = [each for each in results if each.cell.chunk == chunk]
        lines = grouped(found, lambda each: (each.cell.phi, each.cell.slots))
        slots = sorted({each.cell.slots for each in found})
        for (phi, count), group in sorted(lines.items(), key=str):
            color = f"C{slots.index(group[0].cell.slots)}"
            style = "--" if phi == "identity" else "-"
            _line(
                axes, _mean_points(group, lambda pairs, _: pairs), f"{phi}, M = {count}", color=color, linestyle=style
            )
        _finish(axes, "pairs")
    figure.savefig(path, dpi=120)


def draw_per_slot(results: Sequence[Result], path: Path, names: Callable[[Result], str]) -> None:
    """One panel for each C: accuracy against pairs per slot, one line for each name."""
    chunks = sorted({each.cell.chunk for each in results})
    figure = require_matplotlib()(figsize=(4.2 * max(1, len(chunks)), 4.6), layout="constrained")
    for place, chunk in enumerate(chunks, start=1):
        axes = figure.add_subplot(1, len(chunks), place, title=f"C = {chunk}")
        found = [each for each in results if each.cell.chunk == chunk]
        for (name,), group in grouped(found, lambda each: (names(each),)).items():
            _line(axes, _mean_points(group, lambda pairs, slots: pairs / slots), str(name))
        _finish(axes, "pairs per slot")
    figure.savefig(path, dpi=120)


def _mean_points(results: Sequence[Result], place: Callable[[int, int], float]) -> Points:
    points: dict[float, list[float]] = {}
    for each in results:
        for pairs, share in each.accuracy.items():
            points.setdefault(place(pairs, each.cell.slots), []).append(share)
    return {at: statistics.mean(points[at]) for at in sorted(points)}


def _line(axes: Axes, points: Points, label: str, color: str | None = None, linestyle: str = "-") -> None:
    axes.plot(list(points), list(points.values()), marker=".", label=label, color=color, linestyle=linestyle)


def _finish(axes: Axes, label: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel(label)
    axes.set_ylabel("queries answered")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
