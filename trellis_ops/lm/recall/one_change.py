"""The table of the middle of a grid and of every single change to it, with the spread over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trellis_ops.lm.recall import grids
from trellis_ops.lm.recall.cell import Cell, Result
from trellis_ops.lm.recall.report.tables import grouped, markdown, seeds, spread

_SAID = {
    "learned_state": {True: "first state learned", False: "first state zero"},
    "normalize_qkv": {True: "q, k, v of unit length", False: "q, k, v as they are"},
}
_NAMES = {"chunk": "C", "slots": "M", "init_step_size": "step_size from", "outer_gradient": "gradient"}


def one_change_table(results: Sequence[Result]) -> str:
    """Accuracy by number of pairs and bits per byte, means with standard deviations over seeds; the middle first."""
    axes = axes_of(results)
    pairs = sorted({count for each in results for count in each.accuracy})
    near = [each for each in results if len(grids.changes(each.cell, axes)) <= 1]
    groups = grouped(near, lambda each: grids.changes(each.cell, axes) and (said(each.cell, axes),))
    rows = [
        [
            str(next(iter(key), "none")),
            *(spread([each.accuracy[count] for each in group if count in each.accuracy], 2) for count in pairs),
            spread([each.bits_per_byte for each in group if each.bits_per_byte is not None], 3),
            seeds(group),
        ]
        for key, group in sorted(groups.items(), key=lambda item: item[0] != ())
    ]
    return markdown(["change", *(f"{count} pairs" for count in pairs), "text", "seeds"], rows)


def said(cell: Cell, axes: Mapping[str, Sequence[object]]) -> str:
    """The changes of a cell in words."""
    words = []
    for name in grids.changes(cell, axes):
        value = getattr(cell, name)
        text = f"{value:g}" if isinstance(value, float) else str(value)
        words.append(_SAID[name][value] if name in _SAID else f"{_NAMES.get(name, name)} {text}")
    return ", ".join(words)


def axes_of(results: Sequence[Result]) -> dict[str, list[object]]:
    """The values that occur, of every axis of the ablation."""
    return {name: list(dict.fromkeys(getattr(each.cell, name) for each in results)) for name in grids.ABLATION}
