"""The kernels of any rule for CPUs: what the templates of TVM write beside their loops."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from codegen.kernels.rule_arguments import KEPT, WALKED, is_chunked, kept_states, walked_states
from codegen.maps.emit.tvm import imports
from codegen.recurrence.emit.tvm_maps import function as map_function
from codegen.recurrence.emit.tvm_maps import name_of
from codegen.recurrence.emit.tvm_text import LEFT, SIZES, function, used_names
from codegen.recurrence.of_rule import token_program, used_chunk_states
from codegen.recurrence.program import Axes, Call, Program
from codegen.recurrence.reverse import AFTER, cotangent, reverse_program
from codegen.recurrence.sweeps import Plan, Sweep, planned, solves
from codegen.recurrence.tensors import HEAD, KEEP, TOKEN, Given, state_behind, states, tensors
from codegen.spec import CHUNKED_STEP, Spec

_OF_SWEEPS = ("Mapped", "OverAll", "OverColumns", "OverRows", "Written")


def kernel(kernel: str, spec: Spec) -> Forward | Backward:
    """What the template of one of `codegen.kernels.rule_arguments.KERNELS` is given as `token`."""
    return Forward(spec) if kernel == "recurrence" else Backward(spec)


@dataclass(frozen=True)
class _Kernel:
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
        text = "".join(self.functions)
        names = [name for name in _OF_SWEEPS if f"{name}(" in text]
        lines = [f"from codegen.backends.tvm.emit.rule.sweeps import {', '.join(names)}\n"] if names else []
        if any(map(solves, self.plans)):
            lines.append("from codegen.backends.tvm.emit.rule.solve import solve\n")
        return "".join(sorted(lines)) + imports(self.map_functions)

    @property
    def functions(self) -> tuple[str, ...]:
        """Those that emit programs."""
        raise NotImplementedError

    @property
    def scratch(self) -> str:
        """The function that allocates what a worker holds."""
        names = self._names()
        numbers = [name for name, axes in names.items() if not axes]
        rows = [f"{name}={SIZES[axes[0]]}" for name, axes in names.items() if len(axes) == 1]
        matrices = [f"{name}=({', '.join(SIZES[axis] for axis in axes)})" for name, axes in self._matrices().items()]
        if any(map(solves, self.plans)):
            matrices.append(f"{LEFT}=(D_K, -(-D_K // WIDTH) * WIDTH)")
        lines = ["def scratch():", '    """What a worker holds: numbers and rows of a token, and matrices."""']
        lines.append("    return values(")
        lines += _filled("WIDTH,", [f'numbers=({"".join(f"{chr(34)}{name}{chr(34)}, " for name in numbers).strip()}),'])
        lines += _dictionary("rows", rows) + _dictionary("matrices", matrices)
        return "\n".join([*lines, "    )"]) + "\n"

    def _names(self) -> dict[str, Axes]:
        """Rows and numbers in scratch, with their axes."""
        found = used_names(self.plans)
        kept = {**self.states, **self.chunk_states}
        return dict(sorted((found | {name: axes for name, axes in kept.items() if len(axes) == 1}).items()))

    def _matrices(self) -> dict[str, Axes]:
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

    def _token_loads(self, *plans: Plan) -> list[str]:
        return [f"rows.load_token(x.{each.name}, {each.name}, token, h)" for each in self._tensors(TOKEN, plans)]

    def chunk_starts(self, at: str) -> list[str]:
        """Statements that start the states of a chunk anew."""
        lines = []
        for name, axes in self.chunk_states.items():
            behind = state_behind(name)
            if len(axes) == 1:
                lines.append(f"rows.copy(x.{name}, x.{behind})")
            elif behind is None:
                lines.append(f"sweeps.clear(WIDTH, {at}.{name})")
            else:
                lines.append(f"sweeps.copy(WIDTH, {at}.{name}, {at}.{behind})")
        return lines

    def _places(self, plan: Plan, where: dict[str, str], moved: dict[str, str] | None = None) -> list[str]:
        """Arguments of `places`: where matrices that a plan reads lie, and those that it stores."""
        found = {name: place for name, place in where.items() if len(self._axes(plan, name)) == 2}
        for name, root in plan.stored.items():
            found[name] = f"(x.{name},)" if root is None else (moved or {}).get(root, where[root])
        return [f"{name}={place}," for name, place in found.items()]

    def _axes(self, plan: Plan, name: str) -> Axes:
        return {**plan.axes, **self.states, **self.chunk_states}[name]


def _calls(plan: Plan) -> list[Call]:
    every = [each for step in plan.steps for each in (step.statements if isinstance(step, Sweep) else (step,))]
    return [each for each in every if isinstance(each, Call)]


@dataclass(frozen=True)
class Forward(_Kernel):
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

    def _matrices(self) -> dict[str, Axes]:
        found = super()._matrices()
        if self.starts_chunks:
            found |= {name: axes for name, axes in self.chunk_states.items() if len(axes) == 2}
        return found

    @property
    def loads(self) -> list[str]:
        """Statements that load a token."""
        return self._token_loads(self.plan)

    @property
    def places(self) -> list[str]:
        """Where matrices lie: states in their tensors."""
        where = {name: f"({name}, sequence, h)" for name in self.states}
        where |= {name: f"(x.{name},)" if self.starts_chunks else f"({name}, sequence, h)" for name in self.chunk_states}
        return self._places(self.plan, where)

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
                lines.append(f"sweeps.copy(WIDTH, Matrix({KEPT}{name}, (kept, h)), at.{name})")
        return lines


@dataclass(frozen=True)
class Backward(_Kernel):
    """What recurrence_backward.py.j2 writes."""

    @cached_property
    def forth(self) -> Plan:
        """Of a token's states, computed again."""
        program = token_program(self.spec.rule, self.chunked)
        return planned(program.reduced(program.moved.values()))

    @cached_property
    def reverse(self) -> Program:
        """Of a token."""
        bilevel = self.spec.problem.direction != "backward_first_order"
        return reverse_program(self.spec.rule, self.chunked, bilevel)

    @cached_property
    def back(self) -> Plan:
        """Of the reverse of a token."""
        return planned(self.reverse)

    @property
    def plans(self) -> tuple[Plan, ...]:
        """Both."""
        return (self.forth, self.back)

    @property
    def functions(self) -> tuple[str, ...]:
        """Both."""
        return (
            function("one_token", "What becomes of the states in one token.", self.forth),
            function("one_token_back", "The cotangents of one token, and of the states before it.", self.back),
        )

    @cached_property
    def walked(self) -> dict[str, Axes]:
        """States of every token of a segment."""
        return walked_states(self.spec)

    def _names(self) -> dict[str, Axes]:
        found = super()._names() | {"dy": ("dim_v",)}
        every = {**self.states, **self.chunk_states}
        found |= {cotangent(name): axes for name, axes in every.items() if len(axes) == 1}
        for each in tensors(self.spec.rule):
            found[cotangent(each.name)] = each.axes
            if each.per == HEAD:
                found[f"sum_{cotangent(each.name)}"] = each.axes
        return dict(sorted(found.items()))

    def _matrices(self) -> dict[str, Axes]:
        found = super()._matrices()
        found |= {name: axes for name, axes in self.states.items() if name not in self.walked and len(axes) == 2}
        for name, axes in self.chunk_states.items():
            if len(axes) == 2:
                found |= {name: axes, cotangent(name): axes}
        return found

    @property
    def forth_loads(self) -> list[str]:
        """Statements that load a token of the forward."""
        return self._token_loads(self.forth)

    @property
    def back_loads(self) -> list[str]:
        """Statements that load a token of the reverse, and the states that are rows."""
        lines = self._token_loads(self.back) + ["rows.load_token(x.dy, dy, token, h)"]
        for name in self.back.given:
            state = name.removesuffix(AFTER)
            if state in self.walked and len(self.walked[state]) == 1:
                index = "i + 1" if name.endswith(AFTER) else "i"
                lines.append(f"rows.load(x.{name}, {WALKED}{state}, worker, {index})")
        return lines

    @property
    def forth_places(self) -> list[str]:
        """Where matrices lie while states are computed again."""
        where = {name: f"(x.{name},)" for name in {**self.states, **self.chunk_states}}
        moved = {}
        for name in self.walked:
            if name not in self.chunk_states:
                where[name], moved[name] = (f"({WALKED}{name}, worker, {index})" for index in ("i", "i + 1"))
        return self._places(self.forth, where, moved)

    @property
    def back_places(self) -> list[str]:
        """Where matrices lie in the reverse."""
        where = {name: f"(x.{name},)" for name in self.chunk_states}
        for name in self.walked:
            for index, end in (("i", ""), ("i + 1", AFTER)):
                if f"{name}{end}" in self.back.given:
                    where[f"{name}{end}"] = f"({WALKED}{name}, worker, {index})"
        where |= {cotangent(name): f"({cotangent(name)}, sequence, h)" for name in self.states}
        where |= {cotangent(name): f"(x.{cotangent(name)},)" for name in self.chunk_states}
        return self._places(self.back, where)

    def _axes(self, plan: Plan, name: str) -> Axes:
        every = {**self.states, **self.chunk_states}
        plain = name.removesuffix(AFTER)
        return every.get(plain) or every[plain.removeprefix("d")]

    @property
    def segment_loads(self) -> list[str]:
        """Statements that load the states at the start of a segment."""
        lines = []
        for name, axes in kept_states(self.spec).items():
            if len(axes) == 1:
                lines.append(f"rows.load(x.{name}, {KEPT}{name}, kept, h)")
                if name in self.walked:
                    lines.append(f"rows.store({WALKED}{name}, x.{name}, worker, 0)")
            else:
                walked = name in self.walked and name not in self.chunk_states
                to = f"{WALKED}{name}, (worker, 0)" if walked else f"x.{name}"
                lines.append(f"sweeps.copy(WIDTH, Matrix({to}), Matrix({KEPT}{name}, (kept, h)))")
        return lines

    @property
    def walks(self) -> list[str]:
        """Statements that keep, for the reverse, what a token has moved elsewhere."""
        lines = []
        for name, axes in self.walked.items():
            if len(axes) == 1:
                lines.append(f"rows.store({WALKED}{name}, x.{name}, worker, i + 1)")
            elif name in self.chunk_states:
                lines.append(f"sweeps.copy(WIDTH, Matrix({WALKED}{name}, (worker, i + 1)), forth.{name})")
        return lines

    def earlier_chunk(self, begun_here: bool) -> list[str]:
        """Statements that load the states from the start of an earlier chunk, begun in this segment or before it."""
        lines = []
        for name, axes in self.chunk_states.items():
            behind = state_behind(name)
            if behind is None or name not in self.back.given:
                continue
            place = f"{WALKED}{behind}, {{}}worker, begun{{}}" if begun_here else f"{KEPT}{name}, {{}}kept, h{{}}"
            if len(axes) == 1:
                lines.append(f"rows.load(x.{name}, {place.format('', '')})")
            else:
                lines.append(f"sweeps.copy(WIDTH, Matrix(x.{name}), Matrix({place.format('(', ')')}))")
        return lines

    @property
    def starts(self) -> list[str]:
        """Statements that a sequence begins with: cotangents of states, and sums over its tokens."""
        lines = self._cleared_chunk()
        for name, axes in self.states.items():
            if len(axes) == 1:
                lines.append(f"rows.load(x.{cotangent(name)}, {cotangent(name)}, sequence, h)")
        for name in self.rings:
            ring = f"Matrix({cotangent(name)}, (sequence, h))"
            lines.append(f"rows.unrotate(WIDTH, {ring}, Matrix(x.turned_{name}), length)")
        for each in tensors(self.spec.rule):
            name = cotangent(each.name)
            if each.per == HEAD:
                lines.append(_set(f"sum_{name}", each.axes, "T.float32(0)"))
            if name not in self.back.results:
                lines.append(_set(name, each.axes, "T.float32(0)"))
        return lines

    @property
    def sums(self) -> list[str]:
        """Statements that add a token to the gradients of what each head has."""
        return [
            _set(f"sum_d{each.name}", each.axes, "{sum} + {own}", sum=f"sum_d{each.name}", own=f"d{each.name}")
            for each in tensors(self.spec.rule)
            if each.per == HEAD and cotangent(each.name) in self.back.results
        ]

    @property
    def stores(self) -> list[str]:
        """Statements that store the gradients of a token."""
        every = [each.name for each in tensors(self.spec.rule) if each.per == TOKEN]
        return [f"rows.store({cotangent(name)}, x.{cotangent(name)}, token, h)" for name in every]

    @property
    def ends(self) -> list[str]:
        """Statements that a sequence ends with."""
        lines = []
        for name, axes in self.states.items():
            if len(axes) == 1:
                lines.append(f"rows.store({cotangent(name)}, x.{cotangent(name)}, sequence, h)")
        for each in tensors(self.spec.rule):
            if each.per == HEAD:
                lines.append(f"rows.store({cotangent(each.name)}, x.sum_{cotangent(each.name)}, sequence, h)")
        return lines

    @property
    def chunk_ends(self) -> list[str]:
        """Statements after the reverse of the first token of a chunk."""
        lines = []
        for name, axes in self.chunk_states.items():
            behind = state_behind(name)
            if behind is not None and len(axes) == 1:
                state = cotangent(behind)
                lines.append(f"rows.row(x.{state}, lambda of: of(x.{state}) + of(x.{cotangent(name)}))")
            elif behind is not None:
                lines.append(f"sweeps.add(WIDTH, back.{cotangent(behind)}, back.{cotangent(name)})")
        return lines + self._cleared_chunk()

    def _cleared_chunk(self) -> list[str]:
        return [
            f"rows.clear(x.{cotangent(name)})"
            if len(axes) == 1
            else f"sweeps.clear(WIDTH, Matrix(x.{cotangent(name)}))"
            for name, axes in self.chunk_states.items()
        ]


def _set(to: str, axes: Axes, value: str, **names: str) -> str:
    """A statement: a row, or a number, <- a value of rows or numbers."""
    if axes:
        return f"rows.row(x.{to}, lambda of: {value.format(**{key: f'of(x.{name})' for key, name in names.items()})})"
    return f"rows.number(x.{to}, {value.format(**{key: f'x.{name}[0]' for key, name in names.items()})})"


def _dictionary(name: str, entries: list[str]) -> list[str]:
    if not entries:
        return []
    return [f"        {name}=dict(", *_filled("", [f"{each}," for each in entries], 12), "        ),"]


def _filled(first: str, parts: list[str], indent: int = 8) -> list[str]:
    """Parts in lines of a page."""
    lines = [" " * indent + first] if first else []
    line = ""
    for part in " ".join(parts).split(" "):
        if line and indent + len(line) + 1 + len(part) > 116:
            lines.append(" " * indent + line)
            line = ""
        line = f"{line} {part}" if line else part
    return [*lines, " " * indent + line]
