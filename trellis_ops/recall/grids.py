"""Which cells a study trains: the curve of recall over pairs, and the table of what makes the model learn."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from trellis_ops.recall.cell import Cell

USES_EPS = ("ln_silu",)
"""The maps whose write depends on `phi_eps`; for the others the grid holds one cell, not one for each value."""

CURVE: dict[str, Sequence[Any]] = {
    "slots": (16, 32, 64),
    "chunk": (16, 64, 1),
    "phi": ("identity", "ln_silu"),
    "seed": (0,),
}
"""Accuracy against the number of pairs."""

ABLATION: dict[str, Sequence[Any]] = {
    "seed": (0, 1, 2),
    "slots": (8,),
    "chunk": (16, 64, 1),
    "phi": ("identity", "silu", "ln_silu", "l2_silu"),
    "phi_eps": (1e-6, 1e-4, 1e-2, 1.0),
    "learned_state": (False, True),
    "normalize_qkv": (False, True),
    "outer_gradient": ("bilevel", "first_order"),
}
"""What makes it learn. The seeds are the slowest axis: after a third of the time the table is whole, for one seed."""


def cells(axes: Mapping[str, Sequence[Any]], base: Cell) -> list[Cell]:
    """Every combination of the values of the axes, the last axis fastest, as changes to `base`; none of them twice."""
    found = [replace(base, **dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())]
    same = [replace(cell, phi_eps=Cell.phi_eps) if cell.phi not in USES_EPS else cell for cell in found]
    return list(dict.fromkeys(same))
