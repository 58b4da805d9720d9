"""The order of a program's statements: what moves a state comes after all else that reads it."""

from __future__ import annotations

from codegen.recurrence.program import Program, Statement


def ordered_for_moves(program: Program) -> Program:
    """The same statements in an order in which every state can be moved in place.

    Raises:
        ValueError: a statement needs a state both before and after its move.
    """
    moves = {value: state for state, value in program.moved.items() if value != state}
    waiting, done = list(program.statements), list[Statement]()
    made = {name for each in waiting for name in each.outputs}
    known: set[str] = set()
    while waiting:
        ready = next((each for each in waiting if _is_ready(each, made - known, moves, waiting)), None)
        if ready is None:
            raise ValueError(f"no statement of {[each.outputs for each in waiting]} can come next")
        waiting.remove(ready)
        known |= set(ready.outputs)
        done.append(ready)
    return Program(program.axes, tuple(done), program.moved, program.results, program.detached)


def _is_ready(each: Statement, unknown: set[str], moves: dict[str, str], waiting: list[Statement]) -> bool:
    if unknown & set(each.inputs):
        return False
    moved = {moves[name] for name in each.outputs if name in moves}
    return not any(moved & set(other.inputs) for other in waiting if other is not each)
