"""The text of an expression, and back: data that is read node by node, and never run."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from fractions import Fraction

from codegen.errors import MapTextError
from codegen.maps import functions
from codegen.maps.constants import Exact
from codegen.maps.expression import WIDTH, Expr, call, coefficient, eps, input_row, largest, of, power, total, where

_LARGEST_EXPONENT = 64

_PRECEDENCE = {"compare": 0, "add": 1, "mul": 2, "pow": 3}


def text(x: Expr) -> str:
    """The expression as Python would write it; equal expressions have equal texts."""
    return _text(x, 0)


def decimal(number: Exact) -> str:
    """The shortest decimal number, or a quotient where there is none."""
    if isinstance(number, int):
        return str(number)
    try:
        short = repr(float(number))
    except OverflowError:
        short = "0"
    return short if Fraction(short) == number else f"{number.numerator} / {number.denominator}"


def _text(x: Expr, around: int) -> str:
    if x.op == "number":
        written = decimal(x.number)
        return f"({written})" if (around > 2 and x.number < 0) or (around > 1 and "/" in written) else written
    if x.op in ("input", "symbol"):
        return str(x.value)
    if x.op not in _PRECEDENCE:
        arguments = ", ".join(_text(arg, 0) for arg in x.args)
        return f"{x.op if x.op in ('sum', 'mean', 'max', 'where') else x.value}({arguments})"
    own = _PRECEDENCE[x.op]
    written = _operation(x, own)
    return f"({written})" if own < around or (own == around == 3) else written


def _operation(x: Expr, own: int) -> str:
    if x.op == "add":
        first, *rest = x.args
        return _text(first, own) + "".join(_signed(term, own) for term in rest)
    if x.op == "mul":
        return " * ".join(_text(factor, own + (place > 0)) for place, factor in enumerate(x.args))
    if x.op == "pow":
        exponent = decimal(x.number)
        return f"{_text(x.args[0], own + 1)} ** {f'({exponent})' if '/' in exponent else exponent}"
    one, other = x.args
    return f"{_text(one, own + 1)} {x.value} {_text(other, own + 1)}"


def _signed(term: Expr, own: int) -> str:
    number, rest = coefficient(term)
    if number < 0:
        return f" - {_text(of(-number) * rest, own + 1)}"
    return f" + {_text(term, own)}"


def parsed(written: str, inputs: tuple[str, ...]) -> Expr:
    """The expression whose `text` this is.

    Args:
        written: such as "z * sigmoid(z)".
        inputs: the names that stand for rows.

    Raises:
        MapTextError: it is no expression over those rows.
    """
    try:
        body = ast.parse(written.strip(), mode="eval").body
        return _parsed(body, inputs)
    except (SyntaxError, TypeError, ValueError, ArithmeticError, RecursionError, MemoryError) as error:
        raise MapTextError(text=written, reason=f"{error}") from error


_OPERATORS: dict[type[ast.operator], Callable[[Expr, Expr], Expr]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Expr, Expr], Expr]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


def _parsed(node: ast.expr, inputs: tuple[str, ...]) -> Expr:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return of(number)
        case ast.Name(id=name) if name in inputs:
            return input_row(name)
        case ast.Name(id="eps"):
            return eps
        case ast.Name(id="N"):
            return WIDTH
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_parsed(operand, inputs)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            exponent = _parsed(right, inputs)
            if exponent.op != "number":
                raise ValueError(f"the exponent {ast.unparse(right)} is no number")
            return _power(_parsed(left, inputs), exponent.number)
        case ast.BinOp(left=left, op=kind, right=right) if type(kind) in _OPERATORS:
            return _OPERATORS[type(kind)](_parsed(left, inputs), _parsed(right, inputs))
        case ast.Compare(left=left, ops=[kind], comparators=[right]) if type(kind) in _COMPARISONS:
            return _COMPARISONS[type(kind)](_parsed(left, inputs), _parsed(right, inputs))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            return _applied(name, [_parsed(arg, inputs) for arg in args])
    raise ValueError(f"{ast.unparse(node)!r} is nothing that a map is made of")


def _power(base: Expr, exponent: Exact) -> Expr:
    if not -_LARGEST_EXPONENT <= exponent <= _LARGEST_EXPONENT:
        raise ValueError(f"the exponent {decimal(exponent)} is beyond {_LARGEST_EXPONENT}")
    return power(base, exponent)


def _applied(name: str, args: list[Expr]) -> Expr:
    if name == "where" and len(args) == 3:
        return where(*args)
    if name == "sum" and len(args) == 1:
        return total(args[0])
    if name == "max" and len(args) == 1:
        return largest(args[0])
    if functions.ARITY.get(name) == len(args):
        return call(name, *args)
    raise ValueError(f"{name} of {len(args)} arguments is no function of a map; there are {', '.join(functions.ARITY)}")
