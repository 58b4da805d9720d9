"""What both kernels of any rule for CPUs write beside their loops: functions, scratch, loads and places of matrices."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from codegen.kernels.rule_arguments import is_chunked
from codegen.maps.emit.tvm import imports
from codegen.recurrence.emit.tvm_maps import function as map_function
from codegen.recurrence.emit.tvm_maps import name_of
from codegen.recurrence.emit.tvm_text import LEFT, SIZES, used_names
from codegen.recurrence.of_rule import used_chunk_states
from codegen.recurrence.program import Axes, Call
from codegen.recurrence.sweeps import Plan, Sweep, solves
from codegen.recurrence.tensors import HEAD, KEEP, TOKEN, Given, state_behind, states, tensors
from codegen.spec import CHUNKED_STEP, Spec

_PROVIDED = {
    "": ("matrices", "rows", "sweeps"),
    ".solve": ("solve",),
    ".sweeps": ("Mapped", "OverAll", "OverColumns", "OverRows", "Written"),
    ".values": ("Matrix", "places", "values"),
}
"""What a generated module may import of codegen.backends.tvm.emit.rule, by its modules."""


@dataclass(frozen=True)
class Kernel:
    """What both kernels have."""

    spec: Spec

    @property
    def plans(self) -> tuple[Plan, ...]:
        """Of the programs that the kernel emits."""
        raise NotImplementedError

    @property
    def chunked(self) -> bool:
        """Whether z is taken at states from the start of a chunk."""
        return is_chunked(self.spec)

    @property
    def starts_chunks(self) -> bool:
        """Whether the kernel itself keeps these states."""
        return self.chunked and self.spec.problem.operator != CHUNKED_STEP and bool(self.chunk_states)

    @property
    def states(self) -> dict[str, Axes]:
        """The states of a sequence."""
        return states(self.spec.rule)

    @property
    def chunk_states(self) -> dict[str, Axes]:
        """Those of a chunk."""
        return used_chunk_states(self.spec.rule, self.chunked)

    @property
    def rings(self) -> dict[str, Axes]:
        """The states that are rings."""
        return {name: axes for name, axes in self.states.items() if axes[0] == "window"}

    @property
    def marks(self) -> bool:
        """Whether a token is told which pair of a ring is the oldest."""
        return any(KEEP in plan.given for plan in self.plans)

    @cached_property
    def map_functions(self) -> str:
        """The functions of maps."""
        found = {name_of(call): map_function(call) for plan in self.plans for call in _calls(plan) if call.of}
        return "\n\n".join(found.values())

    @property
    def imports(self) -> str:
        """The lines that import what the generated functions call."""
        rule = "from codegen.backends.tvm.emit.rule"
        lines = imports(self.map_functions).splitlines()
        for module, names in _PROVIDED.items():
            used = [name for name in names if self.uses(name)]
            lines += [f"{rule}{module} import {', '.join(used)}"] if used else []
        if self.uses("walk"):
            lines.append("from codegen.backends.tvm.emit.walks import Token")
        return "".join(f"{line}\n" for line in sorted(lines))

    def uses(self, name: str) -> bool:
        """Whether a generated function or statement has a name."""
        return re.search(rf"(?<![.\w]){name}\b", self._text) is not None

    @cached_property
    def _text(self) -> str:
        always = "places values sweeps"
        return "\n".join([self.map_functions, *self.functions, *self.statements, always])

    @property
    def statements(self) -> list[str]:
        """All that it writes between the loops."""
        raise NotImplementedError

    @property
    def functions(self) -> tuple[str, ...]:
        """Those that emit programs."""
        raise NotImplementedError

    @property
    def scratch(self) -> str:
        """The function that allocates what a worker holds."""
        names = self.names()
        numbers = [name for name, axes in names.items() if not axes]
        rows = [f"{name}={SIZES[axes[0]]}" for name, axes in names.items() if len(axes) == 1]
        matrices = [f"{name}=({', '.join(SIZES[axis] for axis in axes)})" for name, axes in self.matrices().items()]
        if any(map(solves, self.plans)):
            matrices.append(f"{LEFT}=(D_K, -(-D_K // WIDTH) * WIDTH)")
        lines = ["def scratch():", '    """What a worker holds: numbers and rows of a token, and matrices."""']
        lines.append("    return values(")
        lines += ["        WIDTH,", *_filled("numbers=(", [f'"{name}",' for name in numbers], "),")]
        lines += _filled("rows=dict(", [f"{each}," for each in rows], "),")
        lines += _filled("matrices=dict(", [f"{each}," for each in matrices], "),")
        return "\n".join([*lines, "    )"]) + "\n"

    def names(self) -> dict[str, Axes]:
        """Rows and numbers in scratch, with their axes."""
        found = used_names(self.plans)
        kept = {**self.states, **self.chunk_states}
        return dict(sorted((found | {name: axes for name, axes in kept.items() if len(axes) == 1}).items()))

    def matrices(self) -> dict[str, Axes]:
        """Matrices in scratch, with their axes."""
        found = {name: plan.axes[name] for plan in self.plans for name, root in plan.stored.items() if root is None}
        return found | {f"turned_{name}": axes for name, axes in self.rings.items()}

    def _tensors(self, per: str, plans: tuple[Plan, ...]) -> list[Given]:
        used = {name for plan in plans for name in plan.given}
        return [each for each in tensors(self.spec.rule) if each.per == per and each.name in used]

    @property
    def head_loads(self) -> list[str]:
        """Statements that load what each head has."""
        return [f"rows.load(x.{each.name}, {each.name}, h)" for each in self._tensors(HEAD, self.plans)]

    def token_loads(self, *plans: Plan) -> list[str]:
        """Statements that load what plans read of a token."""
        return [f"rows.load_token(x.{each.name}, {each.name}, token, h)" for each in self._tensors(TOKEN, plans)]

    def chunk_starts(self, at: str) -> list[str]:
        """Statements that start the states of a chunk anew."""
        lines = []
        for name, axes in self.chunk_states.items():
            behind = state_behind(name)
            if len(axes) == 1:
                lines.append(f"rows.copy(x.{name}, x.{behind})")
            elif behind is None:
                lines.append(f"matrices.clear(WIDTH, {at}.{name})")
            else:
                lines.append(f"matrices.copy(WIDTH, {at}.{name}, {at}.{behind})")
        return lines

    def placed(self, plan: Plan, where: dict[str, str], moved: dict[str, str] | None = None) -> list[str]:
        """Arguments of `places`: where matrices that a plan reads lie, and those that it stores."""
        found = {name: place for name, place in where.items() if len(self.axes_of(plan, name)) == 2}
        for name, root in plan.stored.items():
            found[name] = f"(x.{name},)" if root is None else (moved or {}).get(root, where[root])
        return [f"{name}={place}," for name, place in found.items()]

    def axes_of(self, plan: Plan, name: str) -> Axes:
        """Of a value or a state."""
        return {**plan.axes, **self.states, **self.chunk_states}[name]


def _calls(plan: Plan) -> list[Call]:
    every = [each for step in plan.steps for each in (step.statements if isinstance(step, Sweep) else (step,))]
    return [each for each in every if isinstance(each, Call)]


def _filled(head: str, parts: list[str], end: str) -> list[str]:
    """An argument whose parts fill lines of a page; nothing if it has none."""
    if not parts:
        return []
    lines, line = [f"        {head}"], ""
    for part in parts:
        if line and len(line) + len(part) > 100:
            lines.append(f"            {line}")
            line = ""
        line = f"{line} {part}" if line else part
    return [*lines, f"            {line}", f"        {end}"]
