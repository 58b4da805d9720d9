"""What the forward of any rule for CPUs writes beside its loops."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from codegen.kernels.rule_arguments import KEPT, kept_states
from codegen.recurrence.emit.tvm_kernel import Kernel
from codegen.recurrence.emit.tvm_text import function
from codegen.recurrence.of_rule import token_program
from codegen.recurrence.program import Axes
from codegen.recurrence.sweeps import Plan, planned


@dataclass(frozen=True)
class Forward(Kernel):
    """What recurrence.py.j2 writes."""

    @cached_property
    def plan(self) -> Plan:
        """Of a token."""
        return planned(token_program(self.spec.rule, self.chunked))

    @property
    def plans(self) -> tuple[Plan, ...]:
        """One."""
        return (self.plan,)

    @property
    def functions(self) -> tuple[str, ...]:
        """One."""
        return (function("one_token", "One token: y, and what becomes of the states.", self.plan),)

    def matrices(self) -> dict[str, Axes]:
        """With chunk states, unless they are the caller's."""
        found = super().matrices()
        if self.starts_chunks:
            found |= {name: axes for name, axes in self.chunk_states.items() if len(axes) == 2}
        return found

    @property
    def statements(self) -> list[str]:
        """Loads, chunk starts, what is kept, and stores."""
        starts = self.chunk_starts("at") if self.starts_chunks else []
        return [*self.head_loads, *self.state_loads, *starts, *self.keeps, *self.loads, *self.state_stores]

    @property
    def loads(self) -> list[str]:
        """Statements that load a token."""
        return self.token_loads(self.plan)

    @property
    def places(self) -> list[str]:
        """Where matrices lie: states in their tensors."""
        where = {name: f"({name}, sequence, h)" for name in self.states}
        where |= {
            name: f"(x.{name},)" if self.starts_chunks else f"({name}, sequence, h)" for name in self.chunk_states
        }
        return self.placed(self.plan, where)

    @property
    def state_loads(self) -> list[str]:
        """Statements that load the states that are rows."""
        names = [name for name, axes in self.states.items() if len(axes) == 1]
        if not self.starts_chunks:
            names += [name for name, axes in self.chunk_states.items() if len(axes) == 1]
        return [f"rows.load(x.{name}, {name}, sequence, h)" for name in names]

    @property
    def state_stores(self) -> list[str]:
        """Statements that store them, and turn rings to have the oldest pair first."""
        lines = [f"rows.store({name}, x.{name}, sequence, h)" for name, axes in self.states.items() if len(axes) == 1]
        for name in self.rings:
            lines.append(f"rows.rotate(WIDTH, at.{name}, Matrix(x.turned_{name}), length)")
        return lines

    @property
    def keeps(self) -> list[str]:
        """Statements that keep the states at the start of a segment."""
        if self.spec.problem.direction == "forward":
            return []
        lines = []
        for name, axes in kept_states(self.spec).items():
            if len(axes) == 1:
                lines.append(f"rows.store({KEPT}{name}, x.{name}, kept, h)")
            else:
                lines.append(f"matrices.copy(WIDTH, Matrix({KEPT}{name}, (kept, h)), at.{name})")
        return lines
