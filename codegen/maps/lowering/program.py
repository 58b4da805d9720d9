"""Straight-line programs: named values, each computed once, in an order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from codegen.maps.expression import WIDTH, Expr, make
from codegen.maps.text import text
from codegen.maps.traversal import nodes

REDUCTIONS = ("sum", "mean", "max")

_CONSTANTS = (WIDTH, make("symbol", value="eps"))


@dataclass(frozen=True)
class Definition:
    """One named value.

    Attributes:
        name: unique in its program.
        value: over inputs and earlier names; a "sum", "mean" or "max" stands alone.
        row: whether it has a number for each slot.
    """

    name: str
    value: Expr
    row: bool

    @property
    def reduction(self) -> bool:
        """Whether it takes the whole row."""
        return self.value.op in REDUCTIONS

    @property
    def uses(self) -> frozenset[str]:
        """The names and inputs that it is computed from."""
        return used(self.value)


@dataclass(frozen=True)
class Program:
    """Named values in order, and what comes out.

    Attributes:
        definitions: each after those that it uses.
        outputs: by name, expressions over inputs and defined names.
    """

    definitions: tuple[Definition, ...]
    outputs: Mapping[str, Expr]

    def __str__(self) -> str:
        lines = [f"{'row' if d.row else '   '} {d.name} = {text(d.value)}" for d in self.definitions]
        return "\n".join([*lines, *(f"out {name} = {text(value)}" for name, value in self.outputs.items())])


def used(x: Expr) -> frozenset[str]:
    """The names and inputs in an expression of a program."""
    return frozenset(str(node.value) for node in nodes(x) if node.op in ("input", "symbol") and node not in _CONSTANTS)
