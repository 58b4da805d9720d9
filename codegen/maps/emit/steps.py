"""Straight-line programs: expressions taken apart into named values, each computed once, in an order."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from codegen.maps.expression import (
    WIDTH,
    ZERO,
    Expr,
    add,
    base_of,
    coefficient,
    exact,
    input_row,
    make,
    mul,
    named,
    nodes,
    power,
    rebuilt,
    replaced,
    total,
    transformed,
)
from codegen.maps.functions import DEFINITIONS
from codegen.maps.simplify import gathered, multiplied_out

_NAMES = {"silu": "s", "sigmoid": "sigma", "exp": "weight", "tanh": "tanh", "log": "log", "sign": "sign", "abs": "size"}


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


REDUCTIONS = ("sum", "mean", "max")


def used(x: Expr) -> frozenset[str]:
    """The names and inputs in an expression of a program."""
    return frozenset(str(node.value) for node in nodes(x) if node.op in ("input", "symbol") and node not in _CONSTANTS)


_CONSTANTS = (WIDTH, make("symbol", value="eps"))


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
        from codegen.maps.text import text

        lines = [f"{'row' if d.row else '   '} {d.name} = {text(d.value)}" for d in self.definitions]
        return "\n".join([*lines, *(f"out {name} = {text(value)}" for name, value in self.outputs.items())])


def program(
    outputs: Mapping[str, Expr], taken: Iterable[str] = (), early: bool = False, apart: Expr | None = None
) -> Program:
    """The program that computes `outputs`, in their order.

    Args:
        outputs: expressions.
        taken: names that it must not use besides those of inputs.
        early: write rows whose scale is known late without it, so that fewer sums follow one another.
        apart: an input; what does not depend on it is computed by itself, for it may be computed before.
    """
    roots = tuple(outputs.values())
    for step in (
        _defined,
        _centred,
        _balanced,
        *((_without_late_scales,) if early else ()),
        _averaged,
        _rooted,
        _grouped,
        _paired,
    ):
        roots = step(roots)
    namer = _Namer(roots if apart is None else _set_apart(roots, apart), taken)
    if apart is not None:
        namer.keep_apart(apart)
    return namer.program(tuple(outputs))


def _each(roots: tuple[Expr, ...], change: object) -> tuple[Expr, ...]:
    return tuple(replaced(root, change) for root in roots)  # type: ignore[arg-type]


def _defined(roots: tuple[Expr, ...]) -> tuple[Expr, ...]:
    """Functions written by others, and named for it."""

    def change(node: Expr) -> Expr | None:
        if node.op != "call":
            return None
        name = _NAMES.get(str(node.value), str(node.value))
        if node.value not in DEFINITIONS:
            return None if node.value in ("max", "min", "abs", "sign") else named(name, node)
        return named(name, replaced(DEFINITIONS[str(node.value)](node.args[0]), change))

    return _each(roots, change)


def _centred(roots: tuple[Expr, ...]) -> tuple[Expr, ...]:
    """A sum x from which sum(w x) is subtracted, as one named row.

    Its terms are then added up in the same order in both places, and where w is 1 for one slot and 0 for the others, as
    in a saturated softmax, that slot gets 0 and not their rounding.
    """
    while True:
        x = next((x for node in nodes(*roots) if node.op == "add" and node.row for x in _summed_in(node)), None)
        if x is None:
            return roots
        together = named("part", x)

        def change(node: Expr, x: Expr = x, together: Expr = together) -> Expr | None:
            if node is x:
                return together
            rest = [arg for arg in node.args if arg not in x.args]
            if node.op != "add" or len(node.args) - len(rest) < len(x.args) or together not in nodes(*rest):
                return None
            return add(together, *rest)

        roots = _each(roots, change)


def _summed_in(node: Expr) -> list[Expr]:
    """The sums of some terms of a sum that reductions in its other terms are taken of."""
    reduced = [part.args[0] for arg in node.args if not arg.row for part in nodes(arg) if part.op == "sum"]
    factors = [factor for row in reduced for factor in (row.args if row.op == "mul" else (row,))]
    return [factor for factor in factors if factor.op == "add" and set(factor.args) <= set(node.args)]


def _balanced(roots: tuple[Expr, ...]) -> tuple[Expr, ...]:
    """Rows that sum to 0 only in exact numbers, such as y of ln_silu, less their mean where a result adds them.

    The mean that was subtracted is rounded, so they have one of their own. Where all slots are nearly equal, what is
    multiplied with it would outweigh the sum of a result, which is all that a state of equal slots takes from it.
    """
    results = nodes(*roots, into=lambda node: node.op not in ("sum", "max", "named") or not _sums_to_nothing(node))
    drifting = {
        node: [term for term in node.args if _row_of(term) is not None]
        for node in results
        if node.op == "add" and node.row
    }

    def change(new: Expr, node: Expr) -> Expr | None:
        if not drifting.get(node):
            return None
        return add(new, *(mul(-1, power(WIDTH, -1), _total(term)) for term in drifting[node]))

    return tuple(transformed(root, change) for root in roots)


def _row_of(term: Expr) -> Expr | None:
    """The row that a term is a multiple of, if it sums to nothing."""
    rows = [factor for factor in (term.args if term.op == "mul" else (term,)) if factor.row]
    return rows[0] if len(rows) == 1 and _sums_to_nothing(rows[0]) else None


def _total(term: Expr) -> Expr:
    """The sum of a multiple of a row that sums to nothing, of what it is a multiple of."""
    row = _row_of(term)
    if row is None:
        return total(term)
    (definition,) = row.args
    scalars = [factor for factor in (term.args if term.op == "mul" else ()) if factor is not row]
    return mul(*scalars, _total(definition) if definition.op == "mul" else total(row))


@functools.cache
def _sums_to_nothing(row: Expr) -> bool:
    return row.op == "named" and row.row and multiplied_out(total(row.args[0])) is ZERO


def _without_late_scales(roots: tuple[Expr, ...]) -> tuple[Expr, ...]:
    """y = w r, r a scalar, written out where sums of w can begin before r is known."""
    late = {
        node: node.args[0]
        for node in nodes(*roots)
        if node.op == "named" and node.row and node.args[0].op == "mul" and node.depth > _rows_of(node.args[0]).depth
    }
    return _each(roots, late.get)


def _rows_of(x: Expr) -> Expr:
    return mul(*(factor for factor in x.args if factor.row))


def _averaged(roots: tuple[Expr, ...]) -> tuple[Expr, ...]:
    """Sums as means, if something is divided by the width."""
    if power(WIDTH, -1) not in nodes(*roots):
        return roots

    def change(node: Expr) -> Expr | None:
        if node.op == "sum":
            return mul(WIDTH, make("mean", node.args))
        return gathered(node) if node.op == "add" and not node.row else None

    return _each(roots, change)


def _rooted(roots: tuple[Expr, ...]) -> tuple[Expr, ...]:
    """Powers with few roots and quotients: of one base, all are powers of its inverse or of its root."""
    powers = [node for node in nodes(*roots) if node.op == "pow"]
    halves = {node.args[0] for node in powers if node.number.denominator == 2}

    def change(node: Expr, was: Expr) -> Expr | None:
        if node.op != "pow" or was.op != "pow" or node.args[0] is WIDTH or was.number.denominator > 2:
            return None
        base, exponent = node.args[0], was.number
        if exponent < 0:
            step = exact(Fraction(1, 2)) if was.args[0] in halves else 1
            return power(named("inverse", make("pow", (base,), -step)), exact(-exponent / Fraction(step)))
        if exponent.denominator == 2:
            return mul(
                named("root", make("pow", (base,), exact(Fraction(1, 2)))), power(base, exponent - Fraction(1, 2))
            )
        return None

    return tuple(transformed(root, change) for root in roots)


def _grouped(roots: tuple[Expr, ...]) -> tuple[Expr, ...]:
    """The scalar factors of a row as one named scalar, and the scalar terms of a sum of rows."""

    def change(node: Expr) -> Expr | None:
        if node.op not in ("add", "mul") or not node.row:
            return None
        scalars = [arg for arg in node.args if not arg.row and arg.op != "number"]
        if len(scalars) < 2 and all(arg.op in ("named", "symbol") or _is_reduction(arg) for arg in scalars):
            return None
        rest = [arg for arg in node.args if arg not in scalars]
        if node.op == "mul":
            return mul(named("scale", mul(*scalars)), *rest)
        return add(named("shift", add(*scalars)), *rest)

    return _each(roots, change)


def _is_reduction(term: Expr) -> bool:
    return coefficient(term)[1].op in REDUCTIONS


def _paired(roots: tuple[Expr, ...]) -> tuple[Expr, ...]:
    """Pairs of rows that several products have, as one named row, the most frequent first."""
    while True:
        products = [node for node in nodes(*roots) if node.op == "mul" and node.row]
        counts = Counter(pair for node in products for pair in _pairs(node))
        several = [(-count, tuple(x.order for x in pair), pair) for pair, count in counts.items() if count > 1]
        if not several:
            return roots
        pair = min(several)[2]
        together = named(_joined_names(pair), mul(*pair))

        def change(node: Expr, pair: tuple[Expr, Expr] = pair, together: Expr = together) -> Expr | None:
            if node.op != "mul" or pair not in _pairs(node):
                return None
            return mul(together, *(_less(factor, pair) for factor in node.args))

        roots = _each(roots, change)


def _pairs(node: Expr) -> list[tuple[Expr, Expr]]:
    bases = [base for base, k in map(base_of, node.args) if base.row and k >= 1 and k.denominator == 1]
    return list(itertools.combinations(sorted(bases, key=lambda x: x.order), 2))


def _set_apart(roots: tuple[Expr, ...], late: Expr) -> tuple[Expr, ...]:
    """Terms and factors that do not depend on an input, together where some others do."""

    def change(node: Expr) -> Expr | None:
        if node.op not in ("add", "mul") or not _depends(node, late):
            return None
        free = [arg for arg in node.args if not _depends(arg, late) and arg.op != "number"]
        if len(free) < 2:
            return None
        combine = mul if node.op == "mul" else add
        return combine(named("kept", combine(*free)), *(arg for arg in node.args if arg not in free))

    return _each(roots, change)


def _depends(x: Expr, late: Expr) -> bool:
    return str(late.value) in x.inputs


def _less(factor: Expr, pair: tuple[Expr, Expr]) -> Expr:
    base, exponent = base_of(factor)
    return power(base, exponent - 1) if base in pair else factor


def _joined_names(parts: Iterable[Expr]) -> str:
    names = [str(part.value) for part in parts if part.op in ("input", "named")]
    joined = "_".join(names)
    return joined if names and len(joined) <= 24 else "product"


class _Namer:
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
        self.apart = {arg for node in every if _depends(node, late) for arg in node.args if not _depends(arg, late)}

    def program(self, names: tuple[str, ...]) -> Program:
        self.taken |= set(names)
        return Program(self.definitions_of(), dict(zip(names, (self.done[root] for root in self.roots), strict=True)))

    def definitions_of(self) -> tuple[Definition, ...]:
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
