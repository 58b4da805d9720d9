"""The steps of a plan as calls of the emitters in codegen/backends/tvm/emit/rule, one statement each."""

from __future__ import annotations

from collections.abc import Iterable

from codegen.recurrence import program as p
from codegen.recurrence.contractions import WINDOW
from codegen.recurrence.emit.tvm_maps import name_of
from codegen.recurrence.program import Axes, Call, Statement, Sum, Term
from codegen.recurrence.sweeps import Plan, Sweep

SIZES = {"slots": "M", "dim_v": "D_V", "dim_k": "D_K", "window": "WINDOW"}
"""Constants of a generated file, by axis."""

LEFT = "left"
"""Scratch of a linear system."""

_PAGE = 116


def function(name: str, says: str, plan: Plan) -> str:
    """A function <name>(x, at) that emits a plan: x has rows and numbers, `at` matrices."""
    lines = [f"def {name}(x, at):", f'    """{says}"""']
    for step in plan.steps:
        for each in step.statements if isinstance(step, Sweep) else (step,):
            lines += [f"    # {each.says}"] if each.says else []
        text = _Sweep(plan, step).lines() if isinstance(step, Sweep) else [_single(step, plan)]
        lines += [f"    {line}" for part in text for line in _fitting(part)]
    for state, value in plan.moved.items():
        if value != state and len(plan.axes[state]) < 2:
            lines.append(f"    rows.copy(x.{state}, x.{value})")
    return "".join(f"{line}\n" for line in lines)


def _single(each: Statement, plan: Plan) -> str:
    """A statement over rows and numbers."""
    axes = plan.axes[each.outputs[0]]
    if isinstance(each, Call):
        return _call(each, plan)
    to = f"x.{each.name}"
    contracted = [axis for factor in each.inputs for axis in plan.axes[factor] if axis not in axes]
    entries = _Entries(plan, "of({})")
    if contracted:
        return f"rows.dot({to}, WIDTH, {SIZES[contracted[0]]}, lambda of: {entries.sum(each)})"
    return f"rows.row({to}, lambda of: {entries.sum(each)})" if axes else f"rows.number({to}, {entries.sum(each)})"


def _call(each: Call, plan: Plan) -> str:
    names = ", ".join(f"x.{name}" for name in (*each.inputs, *each.outputs))
    if each.function == p.GATE:
        return f"rows.gate(x.{each.outputs[0]}, x.{each.inputs[0]})"
    if each.function == p.RECIPROCAL:
        return f"rows.reciprocal(x.{each.outputs[0]}, x.{each.inputs[0]}, READOUT_EPS)"
    if each.function == p.CAST:
        return f"rows.copy(x.{each.outputs[0]}, x.{each.inputs[0]})"
    if each.function == p.SOLVE:
        state, regulariser, b = each.inputs
        transposed = plan.axes[b] == plan.axes[state][1:]
        return f"solve(x.{each.outputs[0]}, at.{state}, x.{regulariser}, x.{b}, x.{LEFT}, transposed={transposed})"
    return f"{name_of(each)}(walk, {SIZES[str(each.axis)]}, {names})"


class _Entries:
    """Sums of products as text; values that are rows are written as `form` says."""

    def __init__(self, plan: Plan, form: str) -> None:
        self.plan, self.form = plan, form

    def sum(self, each: Sum) -> str:
        """The terms of a sum."""
        texts = [(term.sign, self.product(term, each)) for term in each.terms]
        if not texts:
            return "T.float32(0)"
        first, *rest = sorted(texts, key=lambda term: -term[0])
        text = f"-{first[1]}" if first[0] < 0 else first[1]
        return text + "".join(f" {'-' if sign < 0 else '+'} {product}" for sign, product in rest)

    def product(self, term: Term, each: Sum) -> str:
        """A term: numbers first, then rows, so that as little as possible is multiplied for every entry."""
        factors = sorted(term.factors, key=self.order)
        return " * ".join(self.factor(name) for name in factors)

    def order(self, name: str) -> int:
        """The place of a factor in its product."""
        return len(self.plan.axes[name])

    def factor(self, name: str) -> str:
        """One value."""
        return self.form.format(f"x.{name}") if self.plan.axes[name] else f"x.{name}[0]"


class _Sweep(_Entries):
    """A sweep as text."""

    def __init__(self, plan: Plan, sweep: Sweep) -> None:
        super().__init__(plan, "")
        self.sweep = sweep
        self.domain: Axes = (sweep.rows, sweep.columns)
        self.own = {name for each in sweep.statements for name in each.outputs if self._is_own(name)}
        self.loaded: set[str] = set()

    def _is_own(self, name: str) -> bool:
        return self.plan.axes[name] == self.domain and name not in self.plan.stored

    def lines(self) -> list[str]:
        """The call that emits it."""
        body = [line for each in self.sweep.statements for line in self._statement(each)]
        sizes = f"{SIZES[self.sweep.rows]}, {SIZES[self.sweep.columns]}"
        inner = [part for line in body for part in _fitting(f"    {line},")]
        if self.sweep.windowed:
            return [f"sweeps.windowed(WIDTH, WINDOW, {sizes}, lambda p: (", *inner, "))"]
        return [f"sweeps.sweep(WIDTH, {sizes},", *inner, ")"]

    def _statement(self, each: Statement) -> list[str]:
        if isinstance(each, Call):
            return self._mapped(each)
        axes = self.plan.axes[each.name]
        value = f"lambda i: {self.sum(each)}"
        if axes == self.domain and not self.sweep.windowed:
            return [f"Written({self._place(each.name)}, {value})"]
        ring = ", p" if self.sweep.windowed else ""
        to = f"at.{each.name}" if len(axes) == 2 else f"x.{each.name}"
        kinds = {(self.domain[0],): "OverColumns", (self.domain[1],): "OverRows", (): "OverAll"}
        kind = kinds[tuple(axis for axis in axes if axis != WINDOW or WINDOW in self.domain)]
        return [f"{kind}({to}, {value}{ring})"]

    def _mapped(self, each: Call) -> list[str]:
        """A map of rows, of matrices that are only the sweep's: others are loaded before and stored after it."""
        lines = []
        for name in each.inputs:
            if name not in self.own and name not in self.loaded:
                self.loaded.add(name)
                lines.append(f'Written("{name}", lambda i: i.at(at.{name}))')
        inputs, outputs = (", ".join(f'"{name}"' for name in names) for names in (each.inputs, each.outputs))
        lines.append(f"Mapped({name_of(each)}, ({inputs},), ({outputs},))")
        stored = [name for name in each.outputs if name not in self.own]
        self.loaded |= set(stored)
        return lines + [f'Written(at.{name}, lambda i: i.at("{name}"))' for name in stored]

    def _place(self, name: str) -> str:
        return f'"{name}"' if name in self.own else f"at.{name}"

    def product(self, term: Term, each: Sum) -> str:
        """A term, which may be summed over the pairs of a window."""
        if self.sweep.windowed or self.plan.axes[each.name] != self.domain:
            return super().product(term, each)
        rings = [name for name in term.factors if self._is_ring(name)]
        if not rings:
            return super().product(term, each)
        others = Term(tuple(name for name in term.factors if name not in rings))
        inner = " * ".join(self.factor(name) for name in rings)
        over = f"i.over_window(WINDOW, lambda p: {inner})"
        return f"{super().product(others, each)} * {over}" if others.factors else over

    def _is_ring(self, name: str) -> bool:
        return WINDOW in self.plan.axes[name] and WINDOW not in self.domain

    def order(self, name: str) -> int:
        """Numbers, values of rows, values of columns, matrices."""
        axes = tuple(axis for axis in self.plan.axes[name] if not self._is_ring(name) or axis != WINDOW)
        return {(): 0, self.domain[:1]: 1, self.domain[1:]: 2}.get(axes, 3)

    def factor(self, name: str) -> str:
        """One value, at the entries of the sweep."""
        order = self.order(name)
        if order == 0:
            return f"x.{name}[0]"
        if order == 3:
            return f"i.at({self._place(name)})"
        where = "row" if order == 1 else "column"
        return f"i.{where}(at.{name}, p)" if self._is_ring(name) else f"i.{where}(x.{name})"


def _fitting(line: str) -> list[str]:
    """A line, or several where it is longer than a page: the terms of its sum each on its own."""
    indent = " " * (len(line) - len(line.lstrip()))
    if len(line) <= _PAGE or ": " not in line:
        return [line]
    head, _, rest = line.partition("lambda i: " if "lambda i: " in line else "lambda of: ")
    if not rest:
        return [line]
    kind = "lambda i: " if "lambda i: " in line else "lambda of: "
    depth = end = 0
    cuts = [0]
    for end, letter in enumerate(rest):
        depth += (letter in "([") - (letter in ")]")
        if depth < 0 or (depth == 0 and letter == ","):
            break
        if depth == 0 and rest[end : end + 3] in (" + ", " - "):
            cuts.append(end)
    terms = [rest[a:b].strip() for a, b in zip(cuts, [*cuts[1:], end], strict=True)]
    return [f"{indent}{head.strip()} {kind}(", *(f"{indent}    {term}" for term in terms), f"{indent}){rest[end:]}"]


def used_names(plans: Iterable[Plan]) -> dict[str, Axes]:
    """The rows and numbers that plans read and write, with their axes."""
    found: dict[str, Axes] = {}
    for plan in plans:
        for step in plan.steps:
            for each in step.statements if isinstance(step, Sweep) else (step,):
                found |= {name: plan.axes[name] for name in (*each.inputs, *each.outputs) if len(plan.axes[name]) < 2}
    return found
