"""Expressions over one row: the slots, or the channels, of one token.

A row has one number for each slot; a scalar is one number for the whole row. Expressions are made by Python's
operators and the functions below. Equal ones are the same object, and are brought to one form as they are made: sums
and products are flat and sorted, numbers are folded, equal terms and equal factors are collected. Products are not
multiplied out; that is for `codegen.maps.simplify` to decide.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from codegen.maps.constants import Exact, Number, exact, on_numbers, power_of_number

Value = Exact | str | None


@dataclass(frozen=True, eq=False, repr=False)
class Expr:
    """A node.

    Attributes:
        op: "number", "input" or "symbol" (a leaf), "add", "mul", "pow", "call", "where", "compare", "sum" or "max"
            (a reduction over the row), "named".
        args: its operands.
        value: the number, the exponent of "pow", else the name of a leaf, function, comparison or "named".
    """

    op: str
    args: tuple[Expr, ...] = ()
    value: Value = None

    # A number of numpy on the left leaves the operation to the methods below.
    __array_ufunc__ = None

    @property
    def number(self) -> Exact:
        """The value of a "number", the exponent of a "pow"."""
        assert isinstance(self.value, (int, Fraction))
        return self.value

    @cached_property
    def row(self) -> bool:
        """Whether it has a number for each slot."""
        return self.op == "input" or (self.op not in ("sum", "mean", "max") and any(arg.row for arg in self.args))

    @cached_property
    def inputs(self) -> frozenset[str]:
        """The names of the inputs that it depends on."""
        own = {str(self.value)} if self.op == "input" else set()
        return frozenset(own.union(*(arg.inputs for arg in self.args)))

    @cached_property
    def depth(self) -> int:
        """How many reductions follow one another in it."""
        return (self.op in ("sum", "mean", "max")) + max((arg.depth for arg in self.args), default=0)

    @cached_property
    def height(self) -> int:
        """Of its tree."""
        return 1 + max((arg.height for arg in self.args), default=0)

    @cached_property
    def digest(self) -> str:
        """Decided by its structure alone, so that an order by it is the same in every process."""
        content = "\0".join((self.op, str(self.value), *(arg.digest for arg in self.args)))
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @cached_property
    def order(self) -> tuple[object, ...]:
        """What operands are sorted by."""
        return (self.row, self.height, self.op, str(self.value), self.digest)

    def __repr__(self) -> str:
        from codegen.maps.text import text

        return text(self)

    def __reduce__(self) -> tuple[object, ...]:
        return (make, (self.op, self.args, self.value))

    def __add__(self, other: Expr | Number) -> Expr:
        return add(self, other)

    def __mul__(self, other: Expr | Number) -> Expr:
        return mul(self, other)

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> Expr:
        return mul(-1, self)

    def __sub__(self, other: Expr | Number) -> Expr:
        return add(self, mul(-1, other))

    def __rsub__(self, other: Expr | Number) -> Expr:
        return add(other, mul(-1, self))

    def __truediv__(self, other: Expr | Number) -> Expr:
        return mul(self, power(other, -1))

    def __rtruediv__(self, other: Expr | Number) -> Expr:
        return mul(other, power(self, -1))

    def __pow__(self, exponent: Number) -> Expr:
        return power(self, exponent)

    def __lt__(self, other: Expr | Number) -> Expr:
        return make("compare", (self, of(other)), "<")

    def __le__(self, other: Expr | Number) -> Expr:
        return make("compare", (self, of(other)), "<=")

    def __gt__(self, other: Expr | Number) -> Expr:
        return make("compare", (self, of(other)), ">")

    def __ge__(self, other: Expr | Number) -> Expr:
        return make("compare", (self, of(other)), ">=")

    def __bool__(self) -> bool:
        raise TypeError(f"{self!r} has no truth value while a map is defined; choose by where(condition, x, y)")


_MADE: dict[tuple[str, tuple[Expr, ...], Value], Expr] = {}


def make(op: str, args: tuple[Expr, ...] = (), value: Value = None) -> Expr:
    """The one expression of that form, as it is."""
    # The first of two threads that make the same one is the one that both get.
    return _MADE.setdefault((op, args, value), Expr(op, args, value))


def of(x: Expr | Number) -> Expr:
    """x as an expression.

    Raises:
        TypeError: it is neither a number nor an expression.
        ValueError: it is infinite or NaN.
    """
    if isinstance(x, Expr):
        return x
    if isinstance(x, bool) or not isinstance(x, (int, float, Fraction)):
        raise TypeError(f"{x!r} is neither a number nor an expression over a row; write a Python int or float")
    return make("number", value=exact(x))


ZERO, ONE = of(0), of(1)
WIDTH = make("symbol", value="N")
"""How many numbers a row has."""

eps = make("symbol", value="eps")
"""`Rule.phi_eps` where a map is phi, `READOUT_EPS` where it reads."""


def input_row(name: str) -> Expr:
    """An input, one number for each slot."""
    return make("input", value=name)


def named(name: str, x: Expr) -> Expr:
    """x, kept as it is and called `name` in generated code."""
    return x if x.op in ("number", "input", "symbol", "named") else make("named", (x,), name)


def add(*terms: Expr | Number) -> Expr:
    """Their sum."""
    found: dict[Expr, Exact] = {}
    chosen: dict[Expr, list[Expr]] = {}
    for term in _flat("add", map(of, terms)):
        number, rest = coefficient(term)
        if rest.op == "where":
            chosen.setdefault(rest.args[0], []).append(term)
        else:
            found[rest] = found.get(rest, 0) + number
    for condition, several in chosen.items():
        merged = several[0] if len(several) == 1 else _merged(condition, several)
        for term in _flat("add", [merged]):
            number, rest = coefficient(term)
            found[rest] = found.get(rest, 0) + number
    kept = [mul(number, rest) for rest, number in found.items() if number]
    if len(kept) < 2:
        return kept[0] if kept else ZERO
    return make("add", tuple(sorted(kept, key=lambda x: x.order)))


def _merged(condition: Expr, several: list[Expr]) -> Expr:
    """The sum of what depends on one condition, as one choice."""
    split = [coefficient(term) for term in several]
    return where(condition, *(add(*(mul(n, x.args[place]) for n, x in split)) for place in (1, 2)))


def mul(*factors: Expr | Number) -> Expr:
    """Their product."""
    number: Exact = 1
    exponents: dict[Expr, Exact] = {}
    for factor in _flat("mul", map(of, factors)):
        if factor.op == "number":
            number *= factor.number
        else:
            base, exponent = base_of(factor)
            exponents[base] = exponents.get(base, 0) + exponent
    if not number:
        return ZERO
    kept = [_raised(base, exponent) for base, exponent in exponents.items() if exponent]
    chosen = next((x for x in kept if x.op == "where" and ZERO in x.args[1:]), None)
    if chosen is not None:
        # What is not chosen may be infinite, and 0 times infinity is no number: the product goes inside.
        rest = [x for x in kept if x is not chosen and (chosen.row or not x.row)]
        if rest or number != 1:
            condition, x, y = chosen.args
            inside = where(
                condition, *(branch_product(condition, place, b, number, rest) for place, b in ((1, x), (2, y)))
            )
            return mul(inside, *(x for x in kept if x is not chosen and x not in rest))
    if len(kept) == 1 and number == 1:
        return kept[0]
    if not kept:
        return of(number)
    if len(kept) == 1 and kept[0].op == "add":
        return add(*(mul(number, term) for term in kept[0].args))
    sign = () if number == 1 else (of(number),)
    return make("mul", sign + tuple(sorted(kept, key=lambda x: x.order)))


def branch_product(condition: Expr, place: int, branch: Expr, number: Number, rest: list[Expr]) -> Expr:
    """The product of one branch of a choice with other factors, of which those that make the same choice are known."""
    return mul(number, branch, *(x.args[place] if x.op == "where" and x.args[0] is condition else x for x in rest))


def power(x: Expr | Number, exponent: Number) -> Expr:
    """x to the power of a number."""
    base, k = of(x), exact(exponent)
    if base.op == "number":
        return of(power_of_number(base.number, k))
    if base.op == "mul" and k.denominator == 1:
        return mul(*(power(factor, k) for factor in base.args))
    inner, exponent_of_inner = base_of(base)
    # (x^2)^(1/2) is |x|, not x.
    return _raised(inner, exponent_of_inner * k) if k.denominator == 1 else _raised(base, k)


def _raised(base: Expr, exponent: Exact) -> Expr:
    if exponent == 0 or base is ONE:
        return ONE
    if base.op == "where" and ZERO in base.args[1:] and exponent.denominator == 1 and exponent > 1:
        condition, x, y = base.args
        return where(condition, power(x, exponent), power(y, exponent))
    return base if exponent == 1 else make("pow", (base,), exact(exponent))


def _flat(op: str, args: Iterable[Expr]) -> list[Expr]:
    return [each for arg in args for each in (arg.args if arg.op == op else (arg,))]


def coefficient(term: Expr) -> tuple[Exact, Expr]:
    """A term as a number times the rest."""
    if term.op == "number":
        return term.number, ONE
    if term.op == "mul" and term.args[0].op == "number":
        rest = term.args[1:]
        return term.args[0].number, rest[0] if len(rest) == 1 else make("mul", rest)
    return 1, term


def base_of(factor: Expr) -> tuple[Expr, Exact]:
    """A factor as a power."""
    if factor.op == "pow":
        return factor.args[0], factor.number
    return factor, 1


def where(condition: Expr, x: Expr | Number, y: Expr | Number) -> Expr:
    """x where the condition holds, else y; what is not chosen may be infinite or NaN."""
    if not isinstance(condition, Expr) or condition.op != "compare":
        raise TypeError(
            f"where chooses by a comparison such as x > 0, not by {condition!r}; == and != compare no rows, "
            "so write abs(x) <= c for x == 0"
        )
    left, right = condition.args
    if left.op == right.op == "number":
        return of(x) if _COMPARE[str(condition.value)](left.number, right.number) else of(y)
    chosen, other = _in_branch(condition, of(x), 1), _in_branch(condition, of(y), 2)
    return chosen if chosen is other else make("where", (condition, chosen, other))


_COMPARE: dict[str, Callable[[Exact, Exact], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def _in_branch(condition: Expr, x: Expr, place: int) -> Expr:
    return x.args[place] if x.op == "where" and x.args[0] is condition else x


def call(function: str, *args: Expr | Number) -> Expr:
    """A function of the table in `codegen.maps.functions`, element by element."""
    operands = tuple(map(of, args))
    if all(arg.op == "number" for arg in operands):
        return of(on_numbers(function, [arg.number for arg in operands]))
    return make("call", operands, function)


def total(x: Expr | Number) -> Expr:
    """The sum over the row."""
    x = of(x)
    if not x.row:
        return mul(x, WIDTH)
    factors = x.args if x.op == "mul" else (x,)
    rows = [factor for factor in factors if factor.row]
    return mul(*(factor for factor in factors if not factor.row), make("sum", (mul(*rows),)))


def mean(x: Expr | Number) -> Expr:
    """The mean over the row."""
    return total(x) / WIDTH


def largest(x: Expr | Number) -> Expr:
    """The largest number of the row."""
    x = of(x)
    return make("max", (x,)) if x.row else x


def rebuilt(x: Expr, args: tuple[Expr, ...]) -> Expr:
    """x with other operands, brought to the one form."""
    makers: dict[str, Callable[..., Expr]] = {"add": add, "mul": mul, "where": where, "sum": total, "max": largest}
    if x.op in makers:
        return makers[x.op](*args)
    if x.op == "pow":
        return power(args[0], x.number)
    return make(x.op, args, x.value)
