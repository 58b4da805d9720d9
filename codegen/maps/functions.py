"""Functions of one number that a map may be made of, applied element by element, and their derivatives.

Kinks follow autograd: abs and relu have derivative 0 at 0, and max(x, c) passes nothing to x where x <= c.
"""

from __future__ import annotations

from collections.abc import Callable

from codegen.maps.constants import Number
from codegen.maps.expression import ZERO, Expr, call, eps, largest, mean, of, power, total, where


def exp(x: Expr | Number) -> Expr:
    """e to the power of x."""
    return call("exp", x)


def log(x: Expr | Number) -> Expr:
    """The natural logarithm."""
    return call("log", x)


def sigmoid(x: Expr | Number) -> Expr:
    """1 / (1 + exp(-x))."""
    return call("sigmoid", x)


def silu(x: Expr | Number) -> Expr:
    """x sigmoid(x)."""
    return call("silu", x)


def tanh(x: Expr | Number) -> Expr:
    """The hyperbolic tangent."""
    return call("tanh", x)


def sqrt(x: Expr | Number) -> Expr:
    """The square root."""
    return power(x, 0.5)


def rsqrt(x: Expr | Number) -> Expr:
    """1 over the square root."""
    return power(x, -0.5)


def abs(x: Expr | Number) -> Expr:
    """The absolute value."""
    return call("abs", x)


def sign(x: Expr | Number) -> Expr:
    """-1, 0 or 1."""
    return call("sign", x)


def max(x: Expr | Number, *other: Expr | Number) -> Expr:
    """The larger of two; of one row, its largest number.

    Raises:
        ValueError: there are more than two.
    """
    if len(other) > 1:
        raise ValueError(f"max takes one row or two operands, not {1 + len(other)}; write max(max(x, y), z)")
    return call("max", x, *other) if other else largest(x)


def min(x: Expr | Number, *other: Expr | Number) -> Expr:
    """The smaller of two.

    Raises:
        ValueError: there are not two.
    """
    if len(other) != 1:
        raise ValueError(
            f"min takes two operands, not {1 + len(other)}; write min(min(x, y), z), or -max(-x) of one row"
        )
    return call("min", x, *other)


def relu(x: Expr | Number) -> Expr:
    """max(x, 0)."""
    return max(x, 0)


def sum(x: Expr | Number) -> Expr:
    """The sum over the row."""
    return total(x)


ARITY = {"exp": 1, "log": 1, "sigmoid": 1, "silu": 1, "tanh": 1, "abs": 1, "sign": 1, "max": 2, "min": 2}
"""How many arguments each function of `call` has that a user may write."""


def _silu_d2(x: Expr) -> Expr:
    sigma = sigmoid(x)
    return (1 - sigma) * (call("silu_d1", x) + sigma * (1 - silu(x)))


DEFINITIONS: dict[str, Callable[[Expr], Expr]] = {
    "silu": lambda x: x * sigmoid(x),
    "silu_d1": lambda x: sigmoid(x) + silu(x) * (1 - sigmoid(x)),
    "silu_d2": _silu_d2,
    "sigmoid_d1": lambda x: sigmoid(x) * (1 - sigmoid(x)),
    "tanh_d1": lambda x: 1 - tanh(x) ** 2,
}
"""Functions that generated code computes from others; silu_d1 is the first derivative of silu."""

_DERIVATIVES: dict[str, Callable[[Expr], Expr]] = {
    "exp": exp,
    "log": lambda x: 1 / x,
    "sigmoid": lambda x: call("sigmoid_d1", x),
    "sigmoid_d1": lambda x: call("sigmoid_d1", x) * (1 - 2 * sigmoid(x)),
    "silu": lambda x: call("silu_d1", x),
    "silu_d1": lambda x: call("silu_d2", x),
    "tanh": lambda x: call("tanh_d1", x),
    "tanh_d1": lambda x: -2 * tanh(x) * call("tanh_d1", x),
    "abs": sign,
    "sign": lambda x: ZERO,
}


def derivatives(x: Expr, cotangent: Expr) -> list[tuple[Expr, Expr]]:
    """The cotangents of the arguments of a function, of whose value `cotangent` is the cotangent."""
    if x.value in ("max", "min"):
        return _of_choice(x, cotangent)
    if x.value not in _DERIVATIVES:
        x = DEFINITIONS[str(x.value)](x.args[0])
        return [(x, cotangent)]
    (argument,) = x.args
    return [(argument, cotangent * _DERIVATIVES[str(x.value)](argument))]


def _of_choice(x: Expr, cotangent: Expr) -> list[tuple[Expr, Expr]]:
    one, other = x.args

    def chosen(mine: Expr, its: Expr) -> Expr:
        return mine > its if x.value == "max" else mine < its

    if one.inputs and other.inputs:
        # Both pass half of it where they are equal.
        half = of(0.5) * cotangent
        return [
            (mine, where(chosen(mine, its), cotangent, where(chosen(its, mine), ZERO, half)))
            for mine, its in ((one, other), (other, one))
        ]
    return [
        (mine, where(chosen(mine, its), cotangent, ZERO)) for mine, its in ((one, other), (other, one)) if mine.inputs
    ]


VANISHING = {"silu", "tanh", "abs", "sign"}
"""Functions that are 0 at 0."""


def layer_norm(x: Expr) -> Expr:
    """(x - mean x) / sqrt(var x + eps), biased variance, no affine parameters."""
    centred = x - mean(x)
    return centred * rsqrt(mean(centred**2) + eps)


def l2_norm(x: Expr) -> Expr:
    """x / max(||x||_2, 1e-6)."""
    return x * rsqrt(max(total(x**2), 1e-12))


def softmax(x: Expr) -> Expr:
    """exp(x) / sum exp(x)."""
    weight = exp(x - largest(x))
    return weight / total(weight)
