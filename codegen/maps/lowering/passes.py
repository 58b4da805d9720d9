"""Passes over expressions before they are taken apart: each gives names, or a form that costs less."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from fractions import Fraction

from codegen.maps.constants import exact
from codegen.maps.expression import WIDTH, ZERO, Expr, add, base_of, coefficient, make, mul, named, power, total
from codegen.maps.functions import DEFINITIONS
from codegen.maps.lowering.program import REDUCTIONS
from codegen.maps.simplify import gathered, multiplied_out
from codegen.maps.traversal import nodes, replaced, transformed

_NAMES = {"silu": "s", "sigmoid": "sigma", "exp": "weight", "tanh": "tanh", "log": "log", "sign": "sign", "abs": "size"}


def rewritten(roots: tuple[Expr, ...], early: bool) -> tuple[Expr, ...]:
    """The same expressions with what shall have a name of its own named; `early` as `program` takes it."""
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
    return roots


def _each(roots: tuple[Expr, ...], change: Callable[[Expr], Expr | None]) -> tuple[Expr, ...]:
    return tuple(replaced(root, change) for root in roots)


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


def _less(factor: Expr, pair: tuple[Expr, Expr]) -> Expr:
    base, exponent = base_of(factor)
    return power(base, exponent - 1) if base in pair else factor


def _joined_names(parts: Iterable[Expr]) -> str:
    names = [str(part.value) for part in parts if part.op in ("input", "named")]
    joined = "_".join(names)
    return joined if names and len(joined) <= 24 else "product"


def set_apart(roots: tuple[Expr, ...], late: Expr) -> tuple[Expr, ...]:
    """Terms and factors that do not depend on an input, together where some others do."""

    def change(node: Expr) -> Expr | None:
        if node.op not in ("add", "mul") or not depends(node, late):
            return None
        free = [arg for arg in node.args if not depends(arg, late) and arg.op != "number"]
        if len(free) < 2:
            return None
        combine = mul if node.op == "mul" else add
        return combine(named("kept", combine(*free)), *(arg for arg in node.args if arg not in free))

    return _each(roots, change)


def depends(x: Expr, late: Expr) -> bool:
    """Whether an expression depends on an input."""
    return str(late.value) in x.inputs
