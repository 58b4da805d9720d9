"""Expressions of a program as the text of a target language."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from codegen.maps.constants import Exact
from codegen.maps.expression import WIDTH, Expr, coefficient, eps, mul

_ADD, _MUL, _LEAF = 1, 2, 3
_LONGEST_PRODUCT = 8


@dataclass(frozen=True)
class Printer:
    """How a target writes numbers, names and functions.

    Attributes:
        functions: what writes a call, "sqrt", "where" or "power" of texts.
        leaf: what an input, or a name of the program, is called.
        number: how a constant is written.
        width, eps: texts of the two symbols.
        minus: what makes a product negative.
        scalars_last: whether a row's terms are added up before the numbers that all of it shares.
    """

    functions: Mapping[str, Callable[..., str]]
    leaf: Callable[[Expr], str] = field(default=lambda x: str(x.value))
    number: Callable[[float], str] = repr
    width: str = "WIDTH"
    eps: str = "eps"
    minus: str = "-"
    scalars_last: bool = False

    def __call__(self, x: Expr) -> str:
        """The text of x, a value of a program; reductions are for the emitter to write."""
        return self._text(x, 0)

    def _text(self, x: Expr, around: int) -> str:
        text, own = self._written(x)
        return f"({text})" if own < around else text

    def _written(self, x: Expr) -> tuple[str, int]:
        if x.op == "number":
            return self._number(x.number), _LEAF if x.number >= 0 else _ADD
        if x is WIDTH or x is eps:
            return (self.width if x is WIDTH else self.eps), _LEAF
        if x.op in ("input", "symbol"):
            return self.leaf(x), _LEAF
        if x.op == "add":
            return self._sum(x), _ADD
        if x.op == "mul":
            return self._product(x)
        if x.op == "pow":
            return self._power(x)
        if x.op == "compare":
            return f"{self._text(x.args[0], _ADD)} {x.value} {self._text(x.args[1], _ADD)}", 0
        name = "where" if x.op == "where" else str(x.value)
        return self.functions[name](*(self._text(arg, 0) for arg in x.args)), _LEAF

    def _number(self, number: Exact) -> str:
        return self.number(float(number))

    def _sum(self, x: Expr) -> str:
        """Positive terms first, constants last; a row that has no positive term but scalars begins with these."""
        is_negative = {term: coefficient(term)[0] < 0 for term in x.args}
        rows_first = self.scalars_last and any(term.row and not is_negative[term] for term in x.args)
        first, *rest = sorted(
            x.args, key=lambda term: (rows_first and not term.row, is_negative[term], term in (WIDTH, eps))
        )
        text = self._text(first, _ADD)
        for term in rest:
            number, positive = coefficient(term)
            text += f" - {self._text(mul(-number, positive), _MUL)}" if number < 0 else f" + {self._text(term, _ADD)}"
        return text

    def _product(self, x: Expr) -> tuple[str, int]:
        number, rest = coefficient(x)
        if number == -1:
            return f"{self.minus}{self._text(rest, _MUL)}", _ADD
        # What a constant begins with, Triton's interpreter takes for a constant.
        factors = sorted(x.args, key=lambda factor: factor in (WIDTH, eps))
        if eps in factors:
            factors = _around_eps(factors)
        return " * ".join(self._text(factor, _MUL) for factor in factors), _MUL

    def _power(self, x: Expr) -> tuple[str, int]:
        (base,), exponent = x.args, Fraction(x.number)
        if exponent.denominator == 1 and exponent > 1:
            return _repeated(self._text(base, _LEAF), int(exponent)), _MUL
        if exponent.denominator == 1 and exponent < -1:
            return f"{self.number(1.0)} / ({_repeated(self._text(base, _LEAF), -int(exponent))})", _MUL
        if exponent == -1:
            return f"{self.number(1.0)} / {self._text(base, _LEAF)}", _MUL
        if exponent == Fraction(1, 2):
            return self.functions["sqrt"](self._text(base, 0)), _LEAF
        if exponent == Fraction(-1, 2):
            return self.functions["rsqrt"](self._text(base, 0)), _MUL
        return self.functions["power"](self._text(base, 0), self._number(exponent)), _LEAF


def _around_eps(factors: list[Expr]) -> list[Expr]:
    """The factors with eps inside of a square, which may overflow without it: 1 / sqrt(var + eps) reaches eps^-1/2."""
    square = next((x for x in factors if x.op == "pow" and x.number == 2), None)
    if square is None:
        return factors
    rest = [x for x in factors if x is not square and x is not eps]
    return [*square.args, eps, *square.args, *rest]


def _repeated(factor: str, count: int) -> str:
    """A product of equal factors; of many as squares of squares, which compilers compute once."""
    if count <= _LONGEST_PRODUCT:
        return " * ".join([factor] * count)
    half = _repeated(factor, count // 2)
    return f"({half}) * ({half})" + (f" * {factor}" if count % 2 else "")
