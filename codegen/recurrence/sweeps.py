"""Programs as few sweeps over matrices: which statements share one, and which matrices are stored between them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from codegen.recurrence.contractions import WINDOW, taken_apart
from codegen.recurrence.program import SOLVE, Axes, Call, Program, Statement, Sum, term_axes


@dataclass(frozen=True)
class Sweep:
    """Statements over the entries of matrices of equal axes, in order.

    Attributes:
        rows, columns: the axes.
        statements: each sees what those before it have written, of the same entries.
        windowed: whether all is done for every pair of a window.
    """

    rows: str
    columns: str
    statements: tuple[Statement, ...]
    windowed: bool = False


Step: TypeAlias = Statement | Sweep


@dataclass(frozen=True)
class Plan:
    """A program in the order of its sweeps.

    Attributes:
        axes: of every value.
        steps: single statements over rows and numbers, and sweeps.
        stored: matrices that outlive their sweep, each with the state that it takes the place of, or None.
        moved, results: as of the program.
        given: as of the program.
    """

    axes: dict[str, Axes]
    steps: tuple[Step, ...]
    stored: dict[str, str | None]
    moved: dict[str, str]
    results: tuple[str, ...]
    given: tuple[str, ...]


def planned(program: Program) -> Plan:
    """The sweeps of a program.

    A state is moved in the sweep that first reads what it becomes. A matrix of one product is computed wherever it is
    needed. A matrix that a state is added to, and nothing else reads, takes the place of that state.

    Raises:
        ValueError: no statement can come next.
    """
    return _Planner(program).plan()


class _Planner:
    def __init__(self, program: Program) -> None:
        self.program = taken_apart(program)
        self.axes = dict(self.program.axes)
        self.made = {name: each for each in self.program.statements for name in each.outputs}
        self.over = self._places()
        self.cheap = {name for name in self.made if self._is_cheap(name)}
        self.pending = [each for each in self.program.statements if not set(each.outputs) & self.cheap]
        self.done = set(self.program.given)
        self.steps: list[Step] = []

    def plan(self) -> Plan:
        while self.pending:
            while self._single():
                pass
            if self.pending and not self._sweep():
                raise ValueError(f"no statement of {[each.outputs for each in self.pending]} can come next")
        stored = {name: self.over.get(name) for name in self.made if self._is_stored(name)}
        program = self.program
        return Plan(self.axes, tuple(self.steps), stored, dict(program.moved), program.results, program.given)

    def _places(self) -> dict[str, str]:
        """By value, the state in whose place it is written."""
        states = {value: name for name, value in self.program.moved.items()}
        over = {value: name for value, name in states.items() if value != name and len(self.axes[name]) == 2}
        for state, value in self.program.moved.items():
            readers = [each for each in self.program.statements if state in each.inputs]
            if value == state or len(self.axes[state]) != 2 or len(readers) != 1:
                continue
            (reader,) = readers
            if isinstance(reader, Sum) and self._axes_of(reader) == self.axes[state] == self.axes[reader.name]:
                over.setdefault(reader.name, state)
        return over

    def _is_cheap(self, name: str) -> bool:
        each = self.made[name]
        if not isinstance(each, Sum) or len(self.axes[name]) != 2 or name in self.over or len(each.terms) != 1:
            return False
        return self._axes_of(each) == self.axes[name] and WINDOW not in self.axes[name]

    def _axes_of(self, each: Statement) -> Axes:
        """Of everything in a statement."""
        if isinstance(each, Call):
            return self.axes[each.outputs[0]]
        axes = set(self.axes[each.name]).union(*(term_axes(term, self.axes) for term in each.terms))
        return tuple(sorted(axes, key=("window", "slots", "dim_v", "dim_k").index))

    def _domain(self, each: Statement) -> tuple[str, str, bool] | None:
        """Rows and columns of its sweep, and whether that is for every pair of a window; None if it needs none."""
        axes = self._axes_of(each)
        windowed = len(axes) == 3 and WINDOW in self.axes[each.outputs[0]]
        if len(axes) == 3:
            axes = axes[1:]
        return (axes[0], axes[1], windowed) if len(axes) == 2 else None

    def _reads(self, each: Statement) -> set[str]:
        """What it reads, and what is computed for it."""
        found = set(each.inputs)
        for name in found & self.cheap:
            found |= self._reads(self.made[name])
        return found

    def _is_ready(self, each: Statement, more: Iterable[str] = ()) -> bool:
        return self._reads(each) - self.cheap <= self.done | set(more) and not self._is_blocked(each, set(more))

    def _is_blocked(self, each: Statement, more: set[str]) -> bool:
        """Whether it would overwrite what another statement has yet to read."""
        states = {self.over[name] for name in each.outputs if name in self.over}
        if not states:
            return False
        inside = {name for name, state in self.over.items() if state in states and name in self.done | more} | states
        others = [other for other in self.pending if other is not each and not set(other.outputs) <= more]
        return any(inside & self._reads(other) for other in others)

    def _single(self) -> bool:
        ready = [each for each in self.pending if self._domain(each) is None and self._is_ready(each)]
        for each in ready:
            self.pending.remove(each)
            self.done |= set(each.outputs)
            self.steps.append(each)
        return bool(ready)

    def _sweep(self) -> bool:
        domains = [self._domain(each) for each in self.pending if self._is_ready(each)]
        domain = min((each for each in domains if each is not None), key=lambda each: each[2], default=None)
        if domain is None:
            return False
        rows, columns, windowed = domain
        chosen, entries = list[Statement](), set[str]()
        for each in self.pending:
            if self._domain(each) == domain and self._is_ready(each, () if windowed else entries):
                chosen.append(each)
                entries |= {name for name in each.outputs if self.axes[name] == (rows, columns)}
                self.pending = [other for other in self.pending if other is not each]
        made = {name for each in chosen for name in each.outputs}
        self.done |= made
        self.steps.append(Sweep(rows, columns, tuple(self._with_cheap(chosen)), windowed))
        return True

    def _with_cheap(self, chosen: list[Statement]) -> list[Statement]:
        """The statements, each after what is computed for it alone."""
        found: list[Statement] = []

        def take(name: str) -> None:
            for inner in self.made[name].inputs:
                if inner in self.cheap:
                    take(inner)
            if self.made[name] not in found:
                found.append(self.made[name])

        for each in chosen:
            for name in each.inputs:
                if name in self.cheap:
                    take(name)
            found.append(each)
        return found

    def _is_stored(self, name: str) -> bool:
        if len(self.axes[name]) != 2 or name in self.cheap:
            return False
        if name in self.program.moved.values() or WINDOW in self.axes[name]:
            return True
        of = self.made[name]
        for step in self.steps:
            members = step.statements if isinstance(step, Sweep) else (step,)
            apart = not isinstance(step, Sweep) or of not in members or step.windowed
            if apart and any(name in each.inputs for each in members):
                return True
        return False


def solves(plan: Plan) -> bool:
    """Whether a linear system is among its statements."""
    return any(isinstance(step, Call) and step.function == SOLVE for step in plan.steps)
