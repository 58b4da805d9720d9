"""What the reverse of any rule for CPUs writes beside its loops."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from codegen.kernels.rule_arguments import KEPT, WALKED, kept_states, walked_states
from codegen.recurrence.emit.tvm_kernel import Kernel
from codegen.recurrence.emit.tvm_text import function
from codegen.recurrence.of_rule import token_program
from codegen.recurrence.program import Axes, Program
from codegen.recurrence.reverse import AFTER, cotangent, reverse_program
from codegen.recurrence.sweeps import Plan, planned
from codegen.recurrence.tensors import HEAD, TOKEN, state_behind, tensors


@dataclass(frozen=True)
class Backward(Kernel):
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

    @property
    def statements(self) -> list[str]:
        """Those of a sequence, of a segment, and of its tokens forth and back."""
        of_sequence = [*self.head_loads, *self.starts, *self.ends, *self.segment_loads]
        of_token = [*self.forth_loads, *self.walks, *self.back_loads, *self.sums, *self.stores]
        if self.starts_chunks:
            of_token += [*self.chunk_starts("forth"), *self.chunk_ends]
            of_token += [*self.earlier_chunk(True), *self.earlier_chunk(False)]
        return of_sequence + of_token

    @cached_property
    def walked(self) -> dict[str, Axes]:
        """States of every token of a segment."""
        return walked_states(self.spec)

    def names(self) -> dict[str, Axes]:
        """With the cotangents of tensors and of states."""
        found = super().names() | {"dy": ("dim_v",)}
        every = {**self.states, **self.chunk_states}
        found |= {cotangent(name): axes for name, axes in every.items() if len(axes) == 1}
        for each in tensors(self.spec.rule):
            found[cotangent(each.name)] = each.axes
            if each.per == HEAD:
                found[f"sum_{cotangent(each.name)}"] = each.axes
        return dict(sorted(found.items()))

    def matrices(self) -> dict[str, Axes]:
        """With states that are not kept of every token, chunk states and the cotangents of these."""
        found = super().matrices()
        found |= {name: axes for name, axes in self.states.items() if name not in self.walked and len(axes) == 2}
        for name, axes in self.chunk_states.items():
            if len(axes) == 2:
                found |= {name: axes, cotangent(name): axes}
        return found

    @property
    def forth_loads(self) -> list[str]:
        """Statements that load a token of the forward."""
        return self.token_loads(self.forth)

    @property
    def back_loads(self) -> list[str]:
        """Statements that load a token of the reverse, and the states that are rows."""
        lines = [*self.token_loads(self.back), "rows.load_token(x.dy, dy, token, h)"]
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
        return self.placed(self.forth, where, moved)

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
        return self.placed(self.back, where)

    def axes_of(self, plan: Plan, name: str) -> Axes:
        """Of a state, of one after the token, or of a cotangent."""
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
                lines.append(f"matrices.copy(WIDTH, Matrix({to}), Matrix({KEPT}{name}, (kept, h)))")
        return lines

    @property
    def walks(self) -> list[str]:
        """Statements that keep, for the reverse, what a token has moved elsewhere."""
        lines = []
        for name, axes in self.walked.items():
            if len(axes) == 1:
                lines.append(f"rows.store({WALKED}{name}, x.{name}, worker, i + 1)")
            elif name in self.chunk_states:
                lines.append(f"matrices.copy(WIDTH, Matrix({WALKED}{name}, (worker, i + 1)), forth.{name})")
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
                lines.append(f"matrices.copy(WIDTH, Matrix(x.{name}), Matrix({place.format('(', ')')}))")
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
                lines.append(f"matrices.add(WIDTH, back.{cotangent(behind)}, back.{cotangent(name)})")
        return lines + self._cleared_chunk()

    def _cleared_chunk(self) -> list[str]:
        return [
            f"rows.clear(x.{cotangent(name)})"
            if len(axes) == 1
            else f"matrices.clear(WIDTH, Matrix(x.{cotangent(name)}))"
            for name, axes in self.chunk_states.items()
        ]


def _set(to: str, axes: Axes, value: str, **names: str) -> str:
    """A statement: a row, or a number, <- a value of rows or numbers."""
    if axes:
        return f"rows.row(x.{to}, lambda of: {value.format(**{key: f'of(x.{name})' for key, name in names.items()})})"
    return f"rows.number(x.{to}, {value.format(**{key: f'x.{name}[0]' for key, name in names.items()})})"
