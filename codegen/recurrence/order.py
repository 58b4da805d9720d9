"""The order of a program's statements: what moves a state comes after all else that reads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from codegen.recurrence.program import Program, Statement, Sum, Term


def ordered_for_moves(program: Program) -> Program:
    """The same statements in an order in which every state can be moved in place.

    Raises:
        ValueError: a statement needs a state both before and after its move.
    """
    return _ordered(program, lambda each, waiting: 0)


def with_few_matrices(program: Program) -> Program:
    """The same statements in an order in which few matrices are held at once; states can be moved in place still.

    Of the statements that can come next it is always the one after which the fewest are held. A matrix is held from the
    statement that makes it, or reads it first, to the last that reads it.
    """
    program = _apart(program)
    matrices = {name for name, axes in program.axes.items() if len(axes) == 2}
    held: set[str] = set()

    def more(each: Statement, waiting: Sequence[Statement]) -> int:
        later = {name for other in waiting if other is not each for name in other.inputs} | {*program.moved.values()}
        touched = matrices & {*each.inputs, *each.outputs}
        return len((touched - held) & later) - len((touched & held) - later)

    def take(each: Statement, waiting: Sequence[Statement]) -> None:
        later = {name for other in waiting for name in other.inputs} | {*program.moved.values()}
        held.update(matrices & {*each.inputs, *each.outputs})
        held.intersection_update(later)

    return _ordered(program, more, take)


def _apart(program: Program) -> Program:
    """Sums over matrices as one statement for each term, so that what one of them has read need not wait for others."""
    axes, statements = dict(program.axes), list[Statement]()
    for each in program.statements:
        parts = each.terms if isinstance(each, Sum) and len(axes[each.name]) < 2 else ()
        if sum(any(len(axes[factor]) == 2 for factor in term.factors) for term in parts) < 2:
            statements.append(each)
            continue
        (name,) = each.outputs
        names = [f"{name}_part_{number}" for number in range(1, len(parts) + 1)]
        axes |= dict.fromkeys(names, axes[name])
        statements += [Sum(part, (term,)) for part, term in zip(names, parts, strict=True)]
        statements.append(Sum(name, tuple(Term((part,)) for part in names), each.says if isinstance(each, Sum) else ""))
    return Program(axes, tuple(statements), program.moved, program.results, program.detached)


Cost: TypeAlias = Callable[[Statement, Sequence[Statement]], int]


def _ordered(
    program: Program, cost: Cost, take: Callable[[Statement, Sequence[Statement]], None] = lambda each, waiting: None
) -> Program:
    """The statements, of those that can come next always the first of the least cost."""
    moves = {value: state for state, value in program.moved.items() if value != state}
    waiting, done = list(program.statements), list[Statement]()
    made = {name for each in waiting for name in each.outputs}
    known: set[str] = set()
    while waiting:
        ready = [each for each in waiting if _is_ready(each, made - known, moves, waiting)]
        if not ready:
            raise ValueError(f"no statement of {[each.outputs for each in waiting]} can come next")
        chosen = min(ready, key=lambda each: cost(each, waiting))
        waiting.remove(chosen)
        known |= set(chosen.outputs)
        take(chosen, waiting)
        done.append(chosen)
    return Program(program.axes, tuple(done), program.moved, program.results, program.detached)


def _is_ready(each: Statement, unknown: set[str], moves: dict[str, str], waiting: list[Statement]) -> bool:
    if unknown & set(each.inputs):
        return False
    moved = {moves[name] for name in each.outputs if name in moves}
    return not any(moved & set(other.inputs) for other in waiting if other is not each)
