"""The arguments of the kernels between products, and how they share rows, as their templates write them."""

from __future__ import annotations

from codegen.kernels.between.arguments import (
    FEATURES_OF_PROGRAM,
    counterpart,
    kernel_arguments,
    length,
    programs_of_row,
)
from codegen.kernels.layer.layout import Layout, layout_of
from codegen.spec import Spec

_SEPARATOR = "\n" + 4 * " "


def of_kernel(spec: Spec) -> dict[str, str]:
    """What a template writes about the arguments: every tensor is a pointer, every size but the rows a constant."""
    return {"parameters": _SEPARATOR.join(f"{each.name}_ptr," for each in kernel_arguments(spec))}


def variables(spec: Spec) -> dict[str, object]:
    """What a template is given besides: where vectors lie, how long a row of projections is, what a program has."""
    layout: Layout = layout_of(counterpart(spec))
    return {
        "layout": layout,
        "projected": length("projected", spec),
        "features": FEATURES_OF_PROGRAM,
        "programs_of_row": programs_of_row(spec),
    }
