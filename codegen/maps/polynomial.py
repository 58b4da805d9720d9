"""Sums of products over atoms: multiplying out, and what is known of normalisers.

A monomial is a product of powers of atoms, anything that is neither a sum nor a product. In multiplied-out form terms
meet that cancel, and three facts find more of them:

- a power of a sum that holds a reduction r: with B = r / n + c, r / B is n (1 - c / B). So where 1 / sqrt(var + eps) is
  r, var r^2 is 1 - eps r^2;
- the sum over the row of a named row is what its definition says, if that is simpler: 0 of a centred row, 1 of softmax;
- where x > c is asked for beside max(x, c), the latter is x.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

from codegen.maps.constants import Exact, exact
from codegen.maps.expression import ONE, WIDTH, ZERO, Expr, base_of, coefficient, make, mul, of, power, rebuilt, total
from codegen.maps.traversal import nodes

Monomial = frozenset[tuple[Expr, Exact]]
Terms = dict[Monomial, Exact]

_UNIT: Monomial = frozenset()
_MOST_TERMS = 60


class TooLarge(Exception):
    """The multiplied-out form has so many terms that nobody would want it."""


def product(one: Terms, other: Terms) -> Terms:
    """One sum times another."""
    if len(one) * len(other) > 4 * _MOST_TERMS:
        raise TooLarge
    return collected((joined(m, n), c * d) for m, c in one.items() for n, d in other.items())


def plus(*several: Terms) -> Terms:
    """The sum of sums."""
    return collected(item for terms in several for item in terms.items())


def collected(items: Iterable[tuple[Monomial, Exact]]) -> Terms:
    """Like terms added up."""
    found: Terms = {}
    for monomial, number in items:
        found[monomial] = found.get(monomial, 0) + number
    if len(found) > _MOST_TERMS:
        raise TooLarge
    return {monomial: number for monomial, number in found.items() if number}


def joined(*monomials: Monomial) -> Monomial:
    """The product of monomials."""
    exponents: dict[Expr, Exact] = {}
    for monomial in monomials:
        for atom, exponent in monomial:
            exponents[atom] = exponents.get(atom, 0) + exponent
    return frozenset((atom, 1 if is_gate(atom) else k) for atom, k in exponents.items() if k)


def is_gate(atom: Expr) -> bool:
    """Whether it is 1 where a condition on scalars holds, else 0."""
    return atom.op == "where" and not atom.row and atom.args[1:] == (ONE, ZERO)


def gate(condition: Expr) -> Expr:
    """1 where the condition holds, else 0."""
    return make("where", (condition, ONE, ZERO))


def expression(monomial: Monomial, number: Exact = 1) -> Expr:
    """A monomial times a number."""
    return mul(of(number), *(power(atom, exponent) for atom, exponent in monomial))


class Expansion:
    """Multiplies out the expressions of one map.

    Attributes:
        known: rows w whose product y with scalars has a name, as y and the inverse of those scalars: w is then
            written as y over them, so that terms with either meet.
        reductions: those that there are anyway.
    """

    def __init__(self, roots: Iterable[Expr]) -> None:
        self.known: dict[Expr, tuple[Expr, Monomial]] = {}
        self._done: dict[Expr, Terms] = {}
        every = nodes(*roots)
        self.reductions = {node for node in every if node.op in ("sum", "max")}
        for node in every:
            if node.op == "named" and node.row and node.args[0].op == "mul":
                self._learn(node)

    def _learn(self, y: Expr) -> None:
        """Remember the one row, and the scalars, that y is the product of."""
        factors = y.args[0].args
        rows = [factor for factor in factors if factor.row]
        if len(rows) == 1 and rows[0].op in ("named", "call"):
            scalars = [(base, -exponent) for base, exponent in map(base_of, (f for f in factors if not f.row))]
            self.known[rows[0]] = (y, frozenset(scalars))

    def with_named_rows(self, x: Expr) -> Expr:
        """x with each known row w written as y over its scalars, but not inside of what has a name."""
        done: dict[Expr, Expr] = {}
        for node in nodes(x, into=lambda each: each.op not in ("named", "call") and each not in self.reductions):
            if node in self.known:
                y, inverse = self.known[node]
                done[node] = mul(y, expression(inverse))
            elif node.op in ("named", "call") or node in self.reductions:
                done[node] = node
            else:
                args = tuple(done[arg] for arg in node.args)
                done[node] = node if args == node.args else rebuilt(node, args)
        return done[x]

    def __call__(self, x: Expr) -> Terms:
        """x as a sum of monomials.

        Raises:
            TooLarge: there are too many of them.
        """
        if x not in self._done:
            self._done[x] = self._with_facts(self._multiplied_out(x))
        return self._done[x]

    def _multiplied_out(self, x: Expr) -> Terms:
        if x.op == "number":
            return {_UNIT: x.number} if x.number else {}
        if x.op == "add":
            return plus(*map(self, x.args))
        if x.op == "mul":
            found: Terms = {_UNIT: 1}
            for factor in x.args:
                found = product(found, self(factor))
            return found
        if x.op == "pow":
            return self._power(*base_of(x))
        if x.op == "sum":
            return self._total(self(x.args[0]))
        if x.op == "where" and not x.row and not is_gate(x):
            condition, chosen, other = x.args
            asked: Terms = {frozenset({(gate(condition), 1)}): 1}
            return plus(self(other), product(asked, plus(self(chosen), _negative(self(other)))))
        return self._atom(x)

    def _atom(self, x: Expr) -> Terms:
        if x in self.known:
            y, inverse = self.known[x]
            return {joined(frozenset({(y, 1)}), inverse): 1}
        return {frozenset({(x, 1)}): 1}

    def _power(self, base: Expr, exponent: Exact) -> Terms:
        if exponent.denominator == 1 and 0 < exponent <= 3:
            found = self(base)
            for _ in range(int(exponent) - 1):
                found = product(found, self(base))
            return found
        (monomial,) = self._atom(base)
        if exponent.denominator == 1:
            return {frozenset((atom, k * exponent) for atom, k in monomial): 1}
        return {frozenset({(base, exponent)}): 1}

    def _total(self, terms: Terms) -> Terms:
        """The sum over the row, of every monomial by itself."""
        found: list[Terms] = []
        for monomial, number in terms.items():
            rows = frozenset((atom, k) for atom, k in monomial if atom.row)
            scalars: Terms = {monomial - rows: number}
            found.append(product(scalars, self._total_of_rows(rows)))
        return plus(*found)

    def _total_of_rows(self, rows: Monomial) -> Terms:
        if not rows:
            return self(WIDTH)
        plain: Terms = {frozenset({(total(expression(rows)), 1)}): 1}
        if len(rows) > 1:
            return plain
        ((row, exponent),) = rows
        if row.op != "named" or exponent not in (1, 2):
            return plain
        simpler = self._by_definition(row, exponent)
        return plain if simpler is None else simpler

    def _by_definition(self, row: Expr, exponent: Exact) -> Terms | None:
        """The sum of a named row or of its squares, if its definition brings no other sums than it has."""
        (definition,) = row.args
        own = Expansion(())
        try:
            found = own(total(power(definition, exponent)))
        except TooLarge:
            return None
        has = {node for node in nodes(definition) if node.op == "sum"}
        fresh = {atom for monomial in found for atom, _ in monomial if atom.op == "sum"} - has
        return None if fresh else found

    def _with_facts(self, terms: Terms) -> Terms:
        waiting = list(terms.items())
        done: list[tuple[Monomial, Exact]] = []
        for _ in range(20 * _MOST_TERMS):
            if not waiting:
                return collected(done)
            monomial, number = waiting.pop()
            simpler = _simpler(monomial)
            if simpler is None:
                done.append((monomial, number))
            else:
                waiting += [(other, factor * number) for other, factor in simpler.items()]
        raise TooLarge


def _negative(terms: Terms) -> Terms:
    return {monomial: -number for monomial, number in terms.items()}


def _simpler(monomial: Monomial) -> Terms | None:
    """What a fact makes of a monomial, if one applies."""
    exponents = dict(monomial)
    for base, exponent in monomial:
        if base.op == "add" and exponent <= -1:
            found = _of_own_power(monomial, exponents, base)
            if found is not None:
                return found
        if base.op == "call" and base.value == "max" and exponent < 0:
            for x, bound in (base.args, base.args[::-1]):
                if exponents.get(x, 0) > 0 and gate(x > bound) in exponents:
                    swap = frozenset({(x, -1), (base, 1)})
                    return {joined(monomial, swap): 1}
    return None


def _of_own_power(monomial: Monomial, exponents: dict[Expr, Exact], base: Expr) -> Terms | None:
    """A factor that is a term of `base`, of which a power divides the monomial, in terms of the others."""
    for term in base.args:
        number, factors = split(term)
        owns = {atom: k for atom, k in factors if atom is not WIDTH}
        if not any(atom.op == "sum" for atom in owns):
            continue
        if all(exponents.get(atom, 0) >= k > 0 for atom, k in owns.items()):
            without = joined(monomial, frozenset((atom, -k) for atom, k in factors))
            parts = [(joined(without, frozenset({(base, 1)})), 1 / Fraction(number))]
            for other in base.args:
                if other is not term:
                    of_other, its_factors = split(other)
                    parts.append((joined(without, its_factors), -of_other / Fraction(number)))
            return collected((m, exact(c)) for m, c in parts)
    return None


def split(term: Expr) -> tuple[Exact, Monomial]:
    """A term as a number times a monomial, whose factors stay as they are."""
    number, rest = coefficient(term)
    factors = rest.args if rest.op == "mul" else (rest,)
    return number, frozenset(base_of(factor) for factor in factors if factor is not ONE)
