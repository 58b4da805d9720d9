"""Which parts of expressions are values of their own, and their names."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable

from codegen.maps.expression import Expr, base_of, input_row, make, mul, rebuilt
from codegen.maps.lowering.passes import depends
from codegen.maps.lowering.program import REDUCTIONS, Definition, Program
from codegen.maps.traversal import nodes


class Namer:
    """Gives names to the parts of expressions, operands first."""

    def __init__(self, roots: tuple[Expr, ...], taken: Iterable[str]) -> None:
        self.roots = roots
        self.uses = Counter(arg for node in nodes(*roots) for arg in set(node.args))
        self.uses.update(roots)
        self.powers = {node.args[0] for node in nodes(*roots) if node.op == "pow" and node.number > 1}
        self.taken = {str(node.value) for node in nodes(*roots) if node.op in ("input", "symbol")} | set(taken)
        self.apart: set[Expr] = set()
        self.definitions: list[Definition] = []
        self.done: dict[Expr, Expr] = {}

    def keep_apart(self, late: Expr) -> None:
        """Name what does not depend on an input where something that does is computed from it."""
        every = nodes(*self.roots)
        self.apart = {arg for node in every if depends(node, late) for arg in node.args if not depends(arg, late)}

    def program(self, names: tuple[str, ...]) -> Program:
        """The program whose outputs have these names, in the order of the expressions."""
        self.taken |= set(names)
        return Program(self._definitions_of(), dict(zip(names, (self.done[root] for root in self.roots), strict=True)))

    def _definitions_of(self) -> tuple[Definition, ...]:
        for node in nodes(*self.roots):
            args = tuple(self.done[arg] for arg in node.args)
            value = args[0] if node.op == "named" else node if args == node.args else _rebuilt(node, args)
            self.done[node] = self._reference(node, value) if self._is_defined(node, value) else value
        return tuple(self.definitions)

    def _is_defined(self, node: Expr, value: Expr) -> bool:
        if value.op in ("number", "input", "symbol"):
            return False
        if node in self.apart and node.op != "compare":
            return True
        if value.op in REDUCTIONS:
            return True
        if node.op == "named" and (self.uses[node] > 1 or _is_long(value) or not node.row):
            return True
        if node.op == "add" and node.row and len(node.args) > 3 and node not in self.roots:
            return True
        if node.op == "compare" or (node.op == "mul" and len(node.args) == 2 and node.args[0].op == "number"):
            return False
        return node.op != "named" and (self.uses[node] > 1 or (node in self.powers and node.op != "pow"))

    def _reference(self, node: Expr, value: Expr) -> Expr:
        for definition in self.definitions:
            if definition.value is value:
                return _leaf(definition.name, definition.row)
        name = self._unused(_name_of(node, value))
        self.definitions.append(Definition(name, value, node.row))
        return _leaf(name, node.row)

    def _unused(self, name: str) -> str:
        candidates = itertools.chain([name], (f"{name}_{i}" for i in itertools.count(2)))
        chosen = next(each for each in candidates if each not in self.taken)
        self.taken.add(chosen)
        return chosen


def _rebuilt(node: Expr, args: tuple[Expr, ...]) -> Expr:
    return make(node.op, args, node.value) if node.op in ("sum", "mean", "max") else rebuilt(node, args)


def _leaf(name: str, row: bool) -> Expr:
    return input_row(name) if row else make("symbol", value=name)


def _is_long(value: Expr) -> bool:
    return value.op == "call" or (value.op == "pow" and len(nodes(value)) > 1) or len(nodes(value)) > 4


def _name_of(node: Expr, value: Expr) -> str:
    if node.op == "named":
        return str(node.value)
    if value.op in REDUCTIONS:
        of = value.args[0]
        factors = [base_of(factor) for factor in (of.args if of.op == "mul" else (of,))]
        tag = "_".join(f"{base.value}{'_squared' if k == 2 else ''}" for base, k in factors if base.op == "input")
        return f"{'largest' if value.op == 'max' else value.op}_{tag}" if tag and len(tag) <= 28 else f"{value.op}_of"
    if value.op == "add" and mul(-1, input_row("a")) in value.args and len(value.args) == 2:
        return "e"
    return "part" if node.row else "factor"
