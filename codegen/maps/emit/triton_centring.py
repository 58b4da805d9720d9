"""Rows that take an input less its mean, as u of ln_silu takes its target, with that difference as a row of its own."""

from __future__ import annotations

from collections.abc import Iterable

from codegen.maps.expression import WIDTH, ZERO, Expr, add, coefficient, input_row, make, mul, power, total
from codegen.maps.lowering import Definition, Program, program
from codegen.maps.simplify import multiplied_out
from codegen.maps.traversal import replaced


def centring_program(name: str, result: Expr, x: Expr, taken: Iterable[str]) -> Program:
    """The program of `result`, called `name`, with x - mean x as a row of its own where a sum adds c x - c mean x.

    A mean of x y, y a row that sums to 0, takes that row in place of x as well. So one of them is in registers in place
    of both, and the mean of x does not multiply what rounding left of the sum of y.
    """
    mean, centred = make("symbol", value=f"mean_{x.value}"), input_row(f"centred_{x.value}")
    changed = replaced(result, lambda node: _less_mean(node, x, centred))
    if changed is result:
        return program({name: result}, taken)
    changed = replaced(changed, lambda node: _beside_nothing(node, x, centred))
    rest = program({name: changed}, (*taken, str(mean.value)))
    first = (
        Definition(str(mean.value), make("mean", (x,)), row=False),
        Definition(str(centred.value), add(x, mul(-1, mean)), row=True),
    )
    uses = [i for i, each in enumerate(rest.definitions) if str(centred.value) in each.uses]
    place = min(uses, default=len(rest.definitions))
    return Program((*rest.definitions[:place], *first, *rest.definitions[place:]), rest.outputs)


def _less_mean(node: Expr, x: Expr, centred: Expr) -> Expr | None:
    """A sum that has c x - c mean x, c a number, with c `centred` for both; None if it has not."""
    number = next((c for c, of in map(coefficient, node.args) if of is x), None) if node.op == "add" else None
    if number is None:
        return None
    pair = [mul(number, x), mul(-number, power(WIDTH, -1), total(x))]
    rest = [term for term in node.args if term not in pair]
    return add(*rest, mul(number, centred)) if len(rest) + 2 == len(node.args) else None


def _beside_nothing(node: Expr, x: Expr, centred: Expr) -> Expr | None:
    """The sum of x y with `centred` for x, if y sums to 0."""
    if node.op != "sum" or node.args[0].op != "mul" or x not in node.args[0].args:
        return None
    rest = [factor for factor in node.args[0].args if factor is not x]
    cancels = any(factor.row and multiplied_out(total(factor)) is ZERO for factor in rest)
    return total(mul(centred, *rest)) if cancels else None
