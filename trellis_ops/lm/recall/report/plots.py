"""Results as pictures: accuracy against pairs, and against pairs per slot."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trellis_ops.files.regular_file import replaced
from trellis_ops.lm.recall.cell import Result
from trellis_ops.lm.recall.report.tables import differing, grouped, label
from trellis_ops.lm.train.curve import require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = dict[float, float]
"""From pairs, or pairs per slot, to accuracy."""


def draw_curves(results: Sequence[Result], path: Path, per_slot: bool = False) -> None:
    """One panel for each C: accuracy against pairs, one line for each phi, M and whatever else differs.

    Args:
        results: of the task "recall".
        path: the PNG.
        per_slot: whether pairs are counted per slot.
    """
    names = ("phi", "slots", *differing(results, ("chunk", "phi", "slots")))
    draw_lines(results, path, lambda each: label(each, names).replace("phi=", "").replace("slots=", "M = "), per_slot)


def draw_lines(results: Sequence[Result], path: Path, name: Callable[[Result], str], per_slot: bool = True) -> None:
    """One panel for each C: accuracy against pairs, or pairs per slot, one line for each name; dashed for identity."""
    chunks = sorted({each.cell.chunk for each in results})
    figure = require_matplotlib()(figsize=(4.2 * max(1, len(chunks)), 4.2), layout="constrained")
    for place, chunk in enumerate(chunks, start=1):
        axes = figure.add_subplot(1, len(chunks), place, title=f"C = {chunk}")
        found = [each for each in results if each.cell.chunk == chunk]
        for (text,), group in grouped(found, lambda each: (name(each),)).items():
            points = _mean_points(group, per_slot)
            style = "--" if group[0].cell.phi == "identity" else "-"
            axes.plot(list(points), list(points.values()), marker=".", linestyle=style, label=text)
        _finish(axes, "pairs per slot" if per_slot else "pairs")
    with replaced(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=120)


def _mean_points(results: Sequence[Result], per_slot: bool) -> Points:
    points: dict[float, list[float]] = {}
    for each in results:
        for pairs, share in each.accuracy.items():
            points.setdefault(pairs / each.cell.slots if per_slot else pairs, []).append(share)
    return {at: statistics.mean(points[at]) for at in sorted(points)}


def _finish(axes: Axes, text: str) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel(text)
    axes.set_ylabel("queries answered")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
