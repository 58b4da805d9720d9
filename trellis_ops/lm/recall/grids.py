"""Which cells a study trains: the curve of recall over pairs, and the table of what makes the model learn."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from codegen.rules import NAMED
from trellis_ops.lm.recall.cell import Cell
from trellis_ops.lm.recall.equal_sizes import of_equal_cost

USES_EPS = ("ln_silu",)
"""The maps whose write depends on `phi_eps`; for the others the grid holds one cell, not one for each value."""

Axes = Mapping[str, Sequence[Any]]
"""What varies in a study: the values of each field of `Cell`."""

CURVE: dict[str, Sequence[Any]] = {
    "seed": (0,),
    "chunk": (16, 64, 1),
    "slots": (16, 32, 64),
    "phi": ("identity", "ln_silu"),
}
"""Accuracy against the number of pairs. C = 1 takes most of the time and comes last."""

ABLATION: dict[str, Sequence[Any]] = {
    "chunk": (16, 64, 1),
    "seed": (0, 1, 2),
    "slots": (8,),
    "phi": ("identity", "silu", "ln_silu", "l2_silu"),
    "phi_eps": (1e-6, 1e-4, 1e-2, 1.0),
    "learned_state": (False, True),
    "normalize_qkv": (False, True),
    "outer_gradient": ("bilevel", "first_order"),
    "init_step_size": (0.02, 0.1, 0.5),
}
"""What makes it learn; see `from_the_middle` for the order."""

RULES: dict[str, Sequence[Any]] = {"seed": (0, 1, 2), "rule": tuple(NAMED)}
"""All named rules, one seed of each after the other."""

OF_RULES = Cell(heads=4, slots=16, pairs=(4, 8, 16))
"""TRELLIS in that study, whose cost the other rules have: the sizes of the preset `tiny`, with half its slots."""


def cells(axes: Axes, base: Cell) -> list[Cell]:
    """Every combination of the values of the axes, the last axis fastest, as changes to `base`; none of them twice."""
    found = [replace(base, **dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())]
    same = [replace(cell, phi_eps=Cell.phi_eps) if cell.phi not in USES_EPS else cell for cell in found]
    return list(dict.fromkeys(same))


def of_rules(axes: Axes, base: Cell) -> list[Cell]:
    """The cells of several rules, each at the cost that TRELLIS has with the values of the other axes."""
    others = {name: values for name, values in axes.items() if name != "rule"}
    return [of_equal_cost(reference, rule) for reference in cells(others, base) for rule in axes["rule"]]


def from_the_middle(found: Sequence[Cell], axes: Axes, most: int | None = None) -> list[Cell]:
    """The cells that change the fewest settings of the middle first, so that a study that was stopped can be read.

    The middle has the defaults of `Cell`; an axis without that value counts from its first. Seeds are no change.

    Args:
        found: from `cells`.
        axes: as given to it.
        most: leave out what changes more.
    """
    counts = {cell: len(changes(cell, axes)) for cell in found}
    return sorted((cell for cell in found if most is None or counts[cell] <= most), key=counts.__getitem__)


def changes(cell: Cell, axes: Axes) -> tuple[str, ...]:
    """The axes on which a cell is not in the middle; `phi_eps` only where it has an effect."""
    centre = middle(axes)
    return tuple(
        name
        for name in axes
        if name != "seed"
        and (name != "phi_eps" or cell.phi in USES_EPS)
        and getattr(cell, name) != getattr(centre, name)
    )


def middle(axes: Axes) -> Cell:
    """The cell that others are changes of, apart from sizes and seed."""
    first = {name: values[0] for name, values in axes.items() if getattr(Cell, name) not in values}
    return Cell(**first)
