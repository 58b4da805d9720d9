"""The cheapest way to write an expression: as it came, factored, or multiplied out, cancelled and factored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from codegen.maps.expression import ZERO, Expr, add, mul, where
from codegen.maps.functions import DEFINITIONS
from codegen.maps.polynomial import Expansion, Monomial, Terms, TooLarge, collected, expression, is_gate, joined, split
from codegen.maps.traversal import nodes

_REDUCTION, _FUNCTION = 12.0, 12.0
"""What a reduction and a function cost, in operations on every number of the row."""

_LEVEL = 2.0
"""What it costs that one more reduction has to wait for another."""

_SCALAR = 1 / 16


def simplest(x: Expr, given: Collection[Expr] = (), expansion: Expansion | None = None) -> Expr:
    """The cheapest form of x, of equal ones the most multiplied out.

    Args:
        x: an expression.
        given: nodes that cost nothing.
        expansion: of all of which x is a part, and which gives names to rows; x's own if None.
    """
    if x.op not in ("add", "mul", "where", "sum"):
        return x
    expansion = expansion or Expansion([x])
    plain = expansion.with_named_rows(x)
    forms = [form for form in (multiplied_out(x, expansion), gathered(plain), plain) if form is not None]
    return min(forms, key=lambda form: cost(form, given))


def gathered(x: Expr) -> Expr:
    """The common factors of a sum's terms taken out, its terms as they are; of a product, those of its factors."""
    if x.op == "mul":
        return mul(*map(gathered, x.args))
    if x.op != "add":
        return x
    return factored(collected((monomial, number) for number, monomial in map(split, x.args)))


def multiplied_out(x: Expr, expansion: Expansion | None = None) -> Expr | None:
    """x multiplied out, cancelled and factored again; None if that is too long."""
    try:
        return factored((expansion or Expansion([x]))(x))
    except TooLarge:
        return None


def cost(x: Expr, given: Collection[Expr] = ()) -> float:
    """About how many operations on every number of the row x takes."""
    known = set(nodes(*given))
    return _LEVEL * x.depth + sum(_own_cost(node) for node in nodes(x) if node not in known)


def _own_cost(node: Expr) -> float:
    weight = 1.0 if node.row else _SCALAR
    if node.op in ("sum", "max"):
        return _REDUCTION
    if node.op in ("add", "mul"):
        return weight * (len(node.args) - 1)
    if node.op == "pow":
        return weight * (abs(float(node.number)) if node.number.denominator == 1 else 4.0)
    if node.op == "call":
        return weight * (
            3.0 if node.value in DEFINITIONS else 1.0 if node.value in ("max", "min", "abs") else _FUNCTION
        )
    return weight if node.op in ("where", "compare") else 0.0


def factored(terms: Terms) -> Expr:
    """The sum, with common factors taken out: first of all terms, then those of rows that most terms share."""
    if not terms:
        return ZERO
    common = _common(terms)
    inner = _divided(terms, common)
    if len(inner) == 1:
        ((monomial, number),) = inner.items()
        return expression(joined(common, monomial), number)
    return mul(expression(common), _sum_of_groups(inner))


def _sum_of_groups(terms: Terms) -> Expr:
    shared = _most_shared_row(terms)
    if shared is None:
        return _by_row(terms)
    group = {m: c for m, c in terms.items() if _holds(m, shared)}
    rest = {m: c for m, c in terms.items() if m not in group}
    return add(factored(group), factored(rest))


def _holds(monomial: Monomial, shared: Monomial) -> bool:
    exponents = dict(monomial)
    return all(exponents.get(atom, 0) >= k for atom, k in shared)


def _most_shared_row(terms: Terms) -> Monomial | None:
    """The row that most terms share, if they differ in other rows."""
    counts: Counter[Expr] = Counter()
    for parts in {_rows(monomial) for monomial in terms}:
        counts.update(atom for atom, k in parts if k >= 1)
    several = [(-count, atom.order, atom) for atom, count in counts.items() if count > 1]
    return frozenset({(min(several)[2], 1)}) if several else None


def _rows(monomial: Monomial) -> Monomial:
    return frozenset((atom, k) for atom, k in monomial if atom.row)


def _by_row(terms: Terms) -> Expr:
    """The sum over distinct rows of each times its scalar."""
    groups: dict[Monomial, Terms] = {}
    for monomial, number in terms.items():
        rows = _rows(monomial)
        groups.setdefault(rows, {})[monomial - rows] = number
    return add(*(mul(scalar(factors), expression(rows)) for rows, factors in groups.items()))


def scalar(terms: Terms) -> Expr:
    """A sum of scalars: what one condition decides is chosen before anything else."""
    asked = next((atom for monomial in _sorted(terms) for atom, _ in monomial if is_gate(atom)), None)
    if asked is None:
        return _factored_scalars(terms)
    gate: Monomial = frozenset({(asked, 1)})
    without = {m: c for m, c in terms.items() if not gate <= m}
    chosen = collected([*without.items(), *((m - gate, c) for m, c in terms.items() if gate <= m)])
    return where(asked.args[0], scalar(chosen), scalar(without))


def _factored_scalars(terms: Terms) -> Expr:
    if len(terms) < 2:
        return add(*(expression(m, c) for m, c in terms.items()))
    common = _common(terms)
    return mul(expression(common), add(*(expression(m, c) for m, c in _divided(terms, common).items())))


def _sorted(terms: Terms) -> list[Monomial]:
    return sorted(terms, key=lambda monomial: expression(monomial).order)


def _common(terms: Terms) -> Monomial:
    """What divides every term; conditions are left for `scalar`."""
    first, *rest = (dict(monomial) for monomial in terms)
    found = {}
    for atom, exponent in first.items():
        others = [other.get(atom, 0) for other in rest]
        if is_gate(atom) or any(other * exponent <= 0 for other in others):
            continue
        found[atom] = min((exponent, *others), key=lambda k: k * k)
    return frozenset(found.items())


def _divided(terms: Terms, common: Monomial) -> Terms:
    inverse: Monomial = frozenset((atom, -k) for atom, k in common)
    return {joined(monomial, inverse): number for monomial, number in terms.items()}
