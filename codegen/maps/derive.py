"""Reverse mode over expressions: u from a map or a loss, and the bilevel terms from u.

With y = phi(z), e = y - a and u the gradient at z of 1/2 ||y - a||^2, or of a loss that is written down in z and a,
`write_of` gives u, and for a cotangent du of it those of z and of a (equations B8, B9 and B15 to B18 of
docs/backward.md, for any map).
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from codegen.maps.expression import ONE, ZERO, Expr, add, base_of, input_row, mul, named, power, total, where
from codegen.maps.functions import derivatives
from codegen.maps.polynomial import Expansion
from codegen.maps.simplify import simplest
from codegen.maps.traversal import nodes, replaced

Z, TARGET, GAIN, COTANGENT = input_row("z"), input_row("a"), input_row("g"), input_row("ct")
"""What a map or loss is applied to, its target and gain, and an incoming cotangent: of y for a readout, of u for a
write."""


@dataclass(frozen=True)
class Write:
    """What a write needs of its map or loss.

    Attributes:
        u: the gradient of the loss at z, in z and a.
        dz: the cotangent of z, in z, a and ct, that of u.
        da: the cotangent of a.
        dg: the cotangent of g, 0 where the loss has none.
    """

    u: Expr
    dz: Expr
    da: Expr
    dg: Expr


@functools.cache
def write_of(phi: Expr, is_loss: bool) -> Write:
    """What is derived of `phi`, a map of z, or a loss of z and a."""
    if is_loss:
        (u,) = pull_back(with_parts_named(phi), ONE, [Z])
    else:
        y = value_of(phi)
        (u,) = pull_back(y, y - TARGET, [Z])
    u = with_scalars_named(u)
    # A u that is one number for all slots has the cotangents of all of them.
    return Write(u, *pull_back(u, COTANGENT if u.row else total(COTANGENT), [Z, TARGET, GAIN]))


@functools.cache
def value_of(phi: Expr) -> Expr:
    """y = phi(z), with the parts named that derivatives are written in."""
    y = with_parts_named(phi)
    return y if y.op in ("input", "call", "named") else named("y", y)


@functools.cache
def pullback_of(phi: Expr) -> Expr:
    """J^T cotangent, J the Jacobian of `phi` at z (B14)."""
    (result,) = pull_back(value_of(phi), COTANGENT, [Z])
    return result


def pull_back(root: Expr, cotangent: Expr, inputs: Sequence[Expr]) -> list[Expr]:
    """The cotangents of `inputs`, given that of `root`."""
    waiting: dict[Expr, list[Expr]] = {root: [cotangent]}
    given = nodes(root)
    expansion = Expansion(given)
    found: dict[Expr, Expr] = {}
    for node in reversed(given):
        found[node] = simplest(add(*waiting.get(node, ())), given, expansion)
        if found[node] is not ZERO:
            for operand, its in _pulled(node, found[node]):
                if operand.inputs:
                    waiting.setdefault(operand, []).append(total(its) if node.row and not operand.row else its)
    return [found.get(x, ZERO) for x in inputs]


def _pulled(node: Expr, cotangent: Expr) -> Iterator[tuple[Expr, Expr]]:
    """What the cotangent of a node says of those of its operands."""
    args = node.args
    if node.op == "add":
        yield from ((arg, cotangent) for arg in args)
    elif node.op == "mul":
        for place, arg in enumerate(args):
            yield arg, mul(cotangent, *args[:place], *args[place + 1 :])
    elif node.op == "pow":
        yield args[0], mul(cotangent, node.number, power(args[0], node.number - 1))
    elif node.op == "call":
        yield from derivatives(node, cotangent)
    elif node.op == "where":
        condition, x, y = args
        yield x, where(condition, cotangent, ZERO)
        yield y, where(condition, ZERO, cotangent)
    elif node.op == "sum":
        yield args[0], cotangent
    elif node.op == "max":
        # All that are largest share it, as in torch.amax.
        is_largest = where(args[0] >= node, ONE, ZERO)
        yield args[0], mul(cotangent, is_largest, power(total(is_largest), -1))
    elif node.op == "named":
        yield _of_named(node, cotangent)


def _of_named(node: Expr, cotangent: Expr) -> tuple[Expr, Expr]:
    if node.row and not node.depth and len(node.inputs) == 1:
        (name,) = node.inputs
        return input_row(name), mul(cotangent, _derivative(node))
    return node.args[0], cotangent


@functools.cache
def _derivative(node: Expr) -> Expr:
    """The derivative of a named function of one input, named after it: s_d1 is that of s, s_d2 that of s_d1."""
    (name,) = node.inputs
    (slope,) = pull_back(node.args[0], ONE, [input_row(name)])
    numbered = re.fullmatch(r"(.*)_d(\d)", str(node.value))
    stem, order = (numbered[1], int(numbered[2])) if numbered else (str(node.value), 0)
    return named(f"{stem}_d{order + 1}", slope)


def with_parts_named(x: Expr) -> Expr:
    """x with names for functions of one input inside of it, and for rows that something of the row is taken from."""
    if not x.depth:
        return x
    grouped = replaced(x, _with_functions_together)
    functions = _largest_functions(grouped)

    def change(node: Expr) -> Expr | None:
        if node in functions:
            return named("s", node)
        if (
            node is not grouped
            and node.row
            and node.op == "add"
            and any(arg.depth and not arg.row for arg in node.args)
        ):
            return named("centred", node)
        return None

    return replaced(grouped, change)


def _with_functions_together(node: Expr) -> Expr | None:
    """A product with those of its factors that are functions of one input as one named factor, to a power."""
    factors = [factor for factor in node.args if node.op == "mul" and factor.row and _is_function(factor)]
    if len(factors) < 2 or len({name for factor in factors for name in factor.inputs}) > 1:
        return None
    powers = [base_of(factor)[1] for factor in factors]
    shared = functools.reduce(math.gcd, [int(k) for k in powers]) if all(k.denominator == 1 for k in powers) else 1
    together = named("s", mul(*(power(base_of(factor)[0], base_of(factor)[1] / shared) for factor in factors)))
    return mul(*(factor for factor in node.args if factor not in factors), power(together, shared))


def _is_function(node: Expr) -> bool:
    return not node.depth and len(node.inputs) == 1


def _largest_functions(root: Expr) -> set[Expr]:
    """The largest parts that are functions of one input and would come apart if they were multiplied out."""
    found, waiting, seen = set(), [root], set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if (
            node.op in ("add", "where")
            and _is_function(node)
            and any(part.op in ("call", "where") for part in nodes(node))
        ):
            found.add(node)
        elif node.op != "named" or not _is_function(node):
            waiting += node.args
    return found


def with_scalars_named(x: Expr) -> Expr:
    """x with names for the sums and choices of scalars that its rows are multiplied with."""
    inside = {
        arg
        for node in nodes(x)
        if node.row and node.op != "named"
        for arg in node.args
        if not arg.row and arg.depth and arg.op in ("add", "where")
    }
    return replaced(x, lambda node: named("keep", node) if node in inside else None)
