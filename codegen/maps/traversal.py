"""Walks over expressions: every node once, operands first, and expressions with nodes replaced."""

from __future__ import annotations

from collections.abc import Callable

from codegen.maps.expression import Expr, rebuilt


def nodes(*roots: Expr, into: Callable[[Expr], bool] = lambda node: True) -> list[Expr]:
    """Every node of some expressions once, operands first; those below a node only where `into` says so."""
    found: dict[Expr, None] = {}
    waiting = list(reversed(roots))
    while waiting:
        node = waiting[-1]
        missing = [arg for arg in node.args if arg not in found] if into(node) else []
        if missing:
            waiting += reversed(missing)
        else:
            found.setdefault(waiting.pop())
    return list(found)


def transformed(x: Expr, change: Callable[[Expr, Expr], Expr | None]) -> Expr:
    """x with nodes replaced, operands first, by `change` of the node with its new operands and of what it was."""
    done: dict[Expr, Expr] = {}
    for node in nodes(x):
        args = tuple(done[arg] for arg in node.args)
        new = node if args == node.args else rebuilt(node, args)
        changed = change(new, node)
        done[node] = new if changed is None else changed
    return done[x]


def replaced(x: Expr, change: Callable[[Expr], Expr | None]) -> Expr:
    """x with each node for which `change` has another, operands first, replaced by it."""
    return transformed(x, lambda node, was: change(node))
