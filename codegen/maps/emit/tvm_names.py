"""What a TVM kernel calls a map, what its write is, and what it reads."""

from __future__ import annotations

from codegen.maps.derive import Write, write_of
from codegen.maps.expression import eps
from codegen.maps.registry import find
from codegen.maps.traversal import nodes


def identifier(of: str) -> str:
    """What generated code calls a map."""
    return find(of).key.replace("@", "_")


def reads_eps(of: str) -> bool:
    """Whether a map has an epsilon."""
    return eps in nodes(find(of).expression)


def write(of: str) -> Write:
    """What is derived of a map or loss for its write."""
    return write_of(find(of).expression, find(of).is_loss)


def says(of: str) -> str:
    """What a function that computes codes does, in words."""
    if find(of).is_loss:
        return f"U <- the gradient at Z of the loss {find(of).name} of Z and A."
    return f"U <- J^T (phi(Z) - A), phi = {find(of).name}, J its Jacobian at Z."
