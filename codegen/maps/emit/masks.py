"""Slots that only pad a row: where a program has to keep them out of sums and results."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from codegen.maps.expression import Expr
from codegen.maps.functions import VANISHING
from codegen.maps.lowering import Program


def vanishes(x: Expr, zero: Collection[str]) -> bool:
    """Whether x is 0 wherever the rows called `zero` are."""
    if x.op == "input":
        return str(x.value) in zero
    if x.op == "number":
        return x.number == 0
    if x.op == "add":
        return all(vanishes(arg, zero) for arg in x.args)
    if x.op == "mul":
        return any(vanishes(arg, zero) for arg in x.args)
    if x.op == "pow":
        return x.number > 0 and vanishes(x.args[0], zero)
    if x.op == "call":
        return x.value in VANISHING and vanishes(x.args[0], zero)
    if x.op == "where":
        return vanishes(x.args[1], zero) and vanishes(x.args[2], zero)
    return False


def masked_names(made: Program, inputs: Iterable[str], results: bool = True) -> frozenset[str]:
    """The definitions and outputs to be set to 0 in the padding, where the `inputs` are 0.

    A row is masked where it is defined, if sums or results then need no mask of their own; else they are. A "max" is
    never named: its padding must hold minus infinity. Without `results` only sums matter.
    """
    zero, masked = set(inputs), set[str]()
    takers = [each.value.args[0] for each in made.definitions if each.value.op in ("sum", "mean")]
    outputs = made.outputs if results else {}
    takers += [x for x in outputs.values() if x.row]
    for each in made.definitions:
        if each.row and not vanishes(each.value, zero):
            if not any(vanishes(x, {*zero, each.name}) and not vanishes(x, zero) for x in takers):
                continue
            masked.add(each.name)
        elif each.value.op in ("sum", "mean") and not vanishes(each.value.args[0], zero):
            masked.add(each.name)
        if each.row:
            zero.add(each.name)
    return frozenset(masked | {name for name, x in outputs.items() if not vanishes(x, zero)})
