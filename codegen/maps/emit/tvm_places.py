"""How an expression reads in a TVM kernel, and where its rows and scalars lie, as texts over m, t and l."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from codegen.maps.emit.printer import Printer
from codegen.maps.expression import Expr

RESERVED = (
    *("T", "M", "D_K", "D_V", "WIDTH", "TILE", "C", "Z", "A", "U", "X", "Y", "b", "m", "t", "l", "g", "walk", "add"),
    *(
        "gain",
        "features",
        "stats",
        "kept",
        "first",
        "dz",
        "dtarget",
        "scaled",
        "eps",
        "zeros",
        "real",
        "exp",
        "sigmoid",
    ),
)


def _is_constant(text: str) -> bool:
    return text.startswith("T.float32(") and text.endswith(")") and text.count("(") == 1


def _extreme(function: str, x: str, y: str) -> str:
    """max or min that keeps NaN: for numbers that do not compare, TVM's are their second argument."""
    if _is_constant(y):
        return f"T.{function}({y}, {x})"
    return f"T.{function}({x}, {y})" if _is_constant(x) else selected(function, x, y)


def selected(function: str, x: str, y: str) -> str:
    """max or min that keeps NaN, by comparing."""
    sign = ">" if function == "max" else "<"
    if _is_constant(y):
        x, y = y, x
    if _is_constant(x):
        return f"T.Select({x} {sign} {y}, {x}, {y})"
    return f"T.Select({x} {sign} {y}, {x}, T.Select({y} {sign}= {x}, {y}, {x} + {y}))"


FUNCTIONS: Mapping[str, Callable[..., str]] = {
    "exp": lambda x: f"exp({x})",
    "log": lambda x: f"T.log({x})",
    "sigmoid": lambda x: f"sigmoid({x})",
    "tanh": lambda x: f"tanh_of({x})",
    "sqrt": lambda x: f"T.sqrt({x})",
    "rsqrt": lambda x: f"T.float32(1) / T.sqrt({x})",
    "abs": lambda x: f"T.abs({x})",
    "sign": lambda x: f"sign_of({x})",
    "max": lambda x, y: _extreme("max", x, y),
    "min": lambda x, y: _extreme("min", x, y),
    "where": lambda condition, x, y: f"T.Select({condition}, {x}, {y})",
    "power": lambda x, exponent: f"exp({exponent} * T.log({x}))",
}


def number(x: float) -> str:
    """A constant of float32."""
    return f"T.float32({int(x) if x == int(x) and abs(x) < 1e6 else repr(x)})"


@dataclass
class Places:
    """Where the rows and scalars of a function lie, as texts over m, t and l.

    Attributes:
        rows: places of inputs, and of rows that were stored or are being computed.
        scalars: places of scalars that are no vectors of their own.
        width, eps: texts of the two symbols.
        lane: the index of a scalar in its vector.
        functions: how functions are written.
        means: the rows that scalars are the means of, by name.
    """

    rows: dict[str, str]
    scalars: dict[str, str] = field(default_factory=dict)
    width: str = "features"
    eps: str = "eps"
    lane: str = "l"
    functions: Mapping[str, Callable[..., str]] = field(default_factory=lambda: FUNCTIONS)
    means: dict[str, str] = field(default_factory=dict)

    def text(self, x: Expr) -> str:
        """An expression of the program."""
        printer = Printer(
            self.functions, self._leaf, number, f"T.float32({self.width})", f"T.float32({self.eps})", "T.float32(0) - "
        )
        return printer(x)

    def centred(self, x: Expr) -> str | None:
        """The text of a row minus its mean; None if x is something else."""
        if x.op != "add" or len(x.args) != 2:
            return None
        minus, row = x.args
        if minus.op != "mul" or len(minus.args) != 2 or minus.args[0].value != -1 or row.op != "input":
            return None
        mean = minus.args[1]
        if self.means.get(str(mean.value)) != str(row.value):
            return None
        return f"minus_mean({self.text(row)}, {self.text(mean)}, {self.width})"

    def _leaf(self, x: Expr) -> str:
        name = str(x.value)
        return self.rows.get(name, name) if x.op == "input" else self.scalars.get(name, f"{name}[{self.lane}]")
