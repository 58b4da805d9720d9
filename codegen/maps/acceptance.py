"""What a definition is refused for before anything is generated from it."""

from __future__ import annotations

import contextlib
import keyword
import re
from collections.abc import Iterator

from codegen.errors import MapTextError
from codegen.maps.constants import RANGE, in_float32, shown
from codegen.maps.derive import pullback_of, value_of, write_of
from codegen.maps.expression import Expr
from codegen.maps.text import parsed, text
from codegen.maps.traversal import nodes

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


@contextlib.contextmanager
def refusals(name: str) -> Iterator[None]:
    """What arithmetic and Python's stack raise of a formula, as a refusal of the map of that name."""
    try:
        yield
    except MapTextError:
        raise
    except RecursionError as error:
        reason = "it nests too deeply for Python; write it with fewer functions inside of functions"
        raise MapTextError(text=name, reason=reason) from error
    except (ValueError, ArithmeticError) as error:
        raise MapTextError(text=name, reason=f"{error}") from error


def check_name(name: str) -> None:
    """Refuse what a generated source could not hold in its keys and heads.

    Raises:
        TypeError: it is no str.
        MapTextError: it is no name.
    """
    if not isinstance(name, str):
        raise TypeError(f'the name of a map is a str such as "cubic", not {name!r}')
    if _NAME.fullmatch(name) is None or keyword.iskeyword(name):
        raise MapTextError(
            text=name,
            reason="a name is an ASCII letter or _, then at most 63 ASCII letters, digits and _, and no word of Python",
        )


def check_expression(name: str, expression: Expr, is_loss: bool) -> None:
    """Refuse a map, or a loss, that its own text would not give again, or that kernels could not compute.

    Raises:
        MapTextError: it has a comparison for a number, or no text that is read again; or it, or a derivative of it,
            has a constant beyond the range of float32.
    """
    _check_comparisons(name, expression)
    _check_constants(name, "it has", expression)
    parsed(text(expression), ("z", "a", "g") if is_loss else ("z",))
    derived = _derived(name, expression, is_loss)
    _check_constants(name, "its derivative needs", *derived)


def _derived(name: str, expression: Expr, is_loss: bool) -> list[Expr]:
    """All that kernels and eager PyTorch compute of a map, or of a loss."""
    try:
        write = write_of(expression, is_loss)
        reads = [] if is_loss else [value_of(expression), pullback_of(expression)]
    except (ValueError, ArithmeticError) as error:
        raise MapTextError(text=name, reason=f"its derivative cannot be written: {error}") from error
    return [write.u, write.dz, write.da, write.dg, *reads]


def _check_comparisons(name: str, expression: Expr) -> None:
    wrong = [expression] if expression.op == "compare" else []
    for node in nodes(expression):
        operands = node.args[1:] if node.op == "where" else node.args
        wrong += [operand for operand in operands if operand.op == "compare"]
    if wrong:
        reason = f"the comparison {wrong[0]!r} stands where a number is needed; write where({wrong[0]!r}, 1, 0)"
        raise MapTextError(text=name, reason=reason)


def _check_constants(name: str, needs: str, *expressions: Expr) -> None:
    for node in nodes(*expressions):
        if node.op == "number" and not in_float32(node.number):
            reason = f"{needs} the constant {shown(node.number)}, which is beyond {RANGE}; scale the formula"
            raise MapTextError(text=name, reason=reason)
