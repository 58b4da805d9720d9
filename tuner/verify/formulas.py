"""The plain formula of a map that comes with its text, for the oracle: PyTorch, node by node of the text.

It shares nothing with `codegen.maps`, which the oracle judges; derivatives are autograd's.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from codegen.errors import MapTextError
from codegen.rule import Rule
from trellis_ops import reference


def define_maps_of(rule: Rule) -> None:
    """Let the oracle compute the maps of `rule` that come with a text, such as "cubic(z) = z ** 3".

    A formula that `trellis_ops.reference.define` was given for the name of a map stays the one that is taken.

    Raises:
        MapTextError: a text has what no map is made of.
    """
    for definition in {rule.phi, rule.link, rule.out, rule.view}:
        head, is_text, body = definition.partition("=")
        if not is_text:
            continue
        tree = _parsed(definition, body)
        if "," in head:
            reference.define_loss(definition, _loss(definition, tree))
        else:
            reference.define(definition, _map(definition, tree))


def _parsed(definition: str, body: str) -> ast.expr:
    try:
        return ast.parse(body.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise MapTextError(text=definition, reason=f"{error}") from error


def _map(definition: str, tree: ast.expr) -> Callable[[Tensor, float], Tensor]:
    def formula(z: Tensor, epsilon: float) -> Tensor:
        # A map of steps does not depend on z for autograd, which differentiates nothing else.
        return _Row(definition, {"z": z}, epsilon).value(tree) + 0 * z

    return formula


def _loss(definition: str, tree: ast.expr) -> Callable[..., Tensor]:
    def formula(z: Tensor, target: Tensor, epsilon: float, gain: Tensor | None = None) -> Tensor:
        rows = {"z": z, "a": target} | ({} if gain is None else {"g": gain})
        loss = _Row(definition, rows, epsilon).value(tree)
        return loss.sum(dim=-1, keepdim=True) + (0 * z * target).sum(dim=-1, keepdim=True)

    return formula


_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": torch.exp,
    "log": torch.log,
    "sigmoid": torch.sigmoid,
    "silu": lambda x: x * torch.sigmoid(x),
    "tanh": torch.tanh,
    "abs": torch.abs,
    "sign": torch.sign,
}
_OPERATIONS: dict[type[ast.operator], Callable[[Tensor, Tensor], Tensor]] = {
    ast.Add: torch.add,
    ast.Sub: torch.sub,
    ast.Mult: torch.mul,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Tensor, Tensor], Tensor]] = {
    ast.Lt: torch.lt,
    ast.LtE: torch.le,
    ast.Gt: torch.gt,
    ast.GtE: torch.ge,
}
_SINGULAR = {"exp", "log"}


@dataclass(frozen=True)
class _Row:
    """What the names in a text stand for, over the last axis.

    Attributes:
        definition: the whole text, for errors.
        inputs: rows by name, `[..., M]`.
        epsilon: of the rule.
        chosen: where the value matters, inside of a `where`; None is everywhere.
    """

    definition: str
    inputs: dict[str, Tensor]
    epsilon: float
    chosen: Tensor | None = None

    def value(self, node: ast.expr) -> Tensor:
        """`[..., M]`, `[..., 1]` or one number."""
        match node:
            case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
                return self._number(float(number))
            case ast.Name(id=name) if name in self.inputs:
                return self.inputs[name]
            case ast.Name(id="eps"):
                return self._number(self.epsilon)
            case ast.Name(id="N"):
                return self._number(self.inputs["z"].shape[-1])
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -self.value(operand)
            case ast.BinOp(left=left, op=ast.Pow(), right=right):
                return self._finite(self.value(left)) ** self._exponent(right)
            case ast.BinOp(left=left, op=ast.Div(), right=right):
                return self.value(left) / self._finite(self.value(right))
            case ast.BinOp(left=left, op=kind, right=right) if type(kind) in _OPERATIONS:
                return _OPERATIONS[type(kind)](self.value(left), self.value(right))
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
                return self._applied(name, args)
        raise self._refused(node)

    def _applied(self, name: str, args: list[ast.expr]) -> Tensor:
        match name, args:
            case "where", [condition, one, other]:
                return self._where(condition, one, other)
            case "max" | "min", [one, other]:
                return self._choice(name, one, other)
            case "sum" | "max", [row]:
                return self._reduced(name, row)
            case _, [argument] if name in _FUNCTIONS:
                x = self.value(argument)
                return _FUNCTIONS[name](self._finite(x) if name in _SINGULAR else x)
        raise MapTextError(text=self.definition, reason=f"{name} of {len(args)} arguments is unknown to the oracle")

    def _where(self, condition: ast.expr, one: ast.expr, other: ast.expr) -> Tensor:
        match condition:
            case ast.Compare(left=left, ops=[kind], comparators=[right]) if type(kind) in _COMPARISONS:
                holds = _COMPARISONS[type(kind)](self.value(left), self.value(right))
            case _:
                raise self._refused(condition)
        return torch.where(holds, self._where_chosen(holds).value(one), self._where_chosen(~holds).value(other))

    def _where_chosen(self, holds: Tensor) -> _Row:
        return replace(self, chosen=holds if self.chosen is None else self.chosen & holds)

    def _choice(self, name: str, one: ast.expr, other: ast.expr) -> Tensor:
        x, y = self.value(one), self.value(other)
        if self._varies(one) and self._varies(other):
            return torch.maximum(x, y) if name == "max" else torch.minimum(x, y)
        # A constant that is as large gets all of the derivative; torch.maximum would give it half.
        if self._varies(other):
            x, y = y, x
        return torch.where(x > y if name == "max" else x < y, x, y)

    def _varies(self, node: ast.expr) -> bool:
        return any(isinstance(each, ast.Name) and each.id in self.inputs for each in ast.walk(node))

    def _reduced(self, name: str, row: ast.expr) -> Tensor:
        # A reduction reads every number of its row, chosen or not, unless whole rows are.
        whole = self.chosen is not None and self.chosen.shape[-1:] == (1,)
        x = (self if whole else self._everywhere()).value(row)
        x = x.broadcast_to(self.inputs["z"].shape)
        return x.sum(dim=-1, keepdim=True) if name == "sum" else x.amax(dim=-1, keepdim=True)

    def _finite(self, x: Tensor) -> Tensor:
        """x where its value matters, else 1: autograd multiplies an infinite derivative of what is not chosen by 0."""
        return x if self.chosen is None else torch.where(self.chosen, x, 1.0)

    def _exponent(self, node: ast.expr) -> float:
        if any(isinstance(each, ast.Name) for each in ast.walk(node)):
            raise self._refused(node)
        return float(self._everywhere().value(node))

    def _everywhere(self) -> _Row:
        return replace(self, chosen=None)

    def _number(self, number: float) -> Tensor:
        return self.inputs["z"].new_full((), number)

    def _refused(self, node: ast.expr) -> MapTextError:
        return MapTextError(text=self.definition, reason=f"{ast.unparse(node)!r} is nothing that the oracle computes")
