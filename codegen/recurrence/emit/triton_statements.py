"""Statements of a token's program as lines of Triton: values are blocks in registers, and their padding holds zeros."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

from codegen.maps import registry
from codegen.maps.emit import triton as of_maps
from codegen.maps.folding import folded
from codegen.recurrence import program as p
from codegen.recurrence.maps import expressions
from codegen.recurrence.program import Axes, Call, Program, Sum, Term, summed
from codegen.rule import READOUT_EPS
from codegen.spec import Spec, next_power_of_two

NAMES = {"slots": "M", "dim_v": "D_v", "dim_k": "D_k", "window": "WINDOW"}
"""What a source calls the size of each axis; with _PAD, the power of two that holds it."""

_WINDOW = p.AXES[0]
_PAGE = 120


def sizes(spec: Spec) -> dict[str, int]:
    """How long every axis is."""
    problem = spec.problem
    return {
        "slots": problem.slots,
        "dim_v": problem.dim_v,
        "dim_k": problem.dim_k,
        _WINDOW: max(1, spec.rule.window - 1),
    }


class Writer:
    """Writes statements, and collects the functions that they call."""

    def __init__(self, spec: Spec) -> None:
        self._sizes = sizes(spec)
        self._functions: dict[tuple[object, ...], tuple[str, str]] = {}

    @property
    def functions(self) -> str:
        """The text of all maps that were written."""
        return "".join(text for _, text in self._functions.values())

    def lines(self, each: p.Statement, program: Program) -> list[str]:
        """One statement, with what it says as a comment."""
        if isinstance(each, Sum):
            return _commented(f"{each.name} = {self._sum(each, program.axes)}", each.says)
        (output, *_), axes = each.outputs, program.axes[each.outputs[0]]
        if each.function == p.CAST:
            return _commented(f"{output} = {each.inputs[0]}", each.says)
        if each.function == p.GATE:
            return _commented(f"{output} = {self._real(f'tl.exp({each.inputs[0]})', axes)}", each.says)
        if each.function == p.RECIPROCAL:
            return _commented(f"{output} = 1.0 / ({each.inputs[0]} + {READOUT_EPS!r})", each.says)
        if each.function == p.SOLVE:
            return _commented(f"{output} = solve({', '.join(each.inputs)})", each.says)
        text = f"{', '.join(each.outputs)} = {self._function(each)}({', '.join(each.inputs)})"
        return _commented(text, each.says) + [
            f"{name} = {self._real(name, program.axes[name][:1], '[:, None]')}"
            for name in each.outputs
            if len(program.axes[name]) == 2 and self._padded(program.axes[name][:1])
        ]

    def zeros(self, axes: Axes) -> str:
        """A block of zeros."""
        return f"tl.zeros([{', '.join(f'{NAMES[axis]}_PAD' for axis in axes)}], tl.float32)" if axes else "0.0"

    def _padded(self, axes: Axes) -> bool:
        return any(self._sizes[axis] != next_power_of_two(self._sizes[axis]) for axis in axes)

    def _real(self, text: str, axes: Axes, place: str = "") -> str:
        """A value with zeros in the padding of its one axis."""
        if not self._padded(axes):
            return text
        (name,) = (NAMES[axis] for axis in axes)
        return f"tl.where(tl.arange(0, {name}_PAD){place} < {name}, {text}, 0.0)"

    def _function(self, each: Call) -> str:
        """The name of the function of a map, which is written if it is new."""
        assert each.axis is not None
        key = (each.function, each.of, each.roles, each.gives, each.axis, each.eps)
        if key not in self._functions:
            made, size = registry.find(each.of), self._sizes[each.axis]
            name = self._unused(f"{each.function}_{made.name}_{each.axis}")
            axis = {"name": NAMES[each.axis], "size": size, "pad": next_power_of_two(size)}
            says = f"{', '.join(each.gives)} of {made.name} over the last axis."
            eps = "PHI_EPS" if each.eps == "phi" else "READOUT_EPS"
            self._functions[key] = name, of_maps.of_rows(name, says, expressions(each), each.roles, axis, eps)
        return self._functions[key][0]

    def _unused(self, name: str) -> str:
        taken = {each for each, _ in self._functions.values()}
        return next(x for x in itertools.chain([name], (f"{name}_{i}" for i in itertools.count(2))) if x not in taken)

    def _sum(self, each: Sum, axes: Mapping[str, Axes]) -> str:
        if not each.terms:
            return self.zeros(axes[each.name])
        texts = [("- " if term.sign < 0 else "+ ") + _term(term, each.name, axes) for term in each.terms]
        first, *rest = texts
        return " ".join([f"-{first[2:]}" if first.startswith("-") else first[2:], *rest])


def indented(lines: Iterable[str], indent: int) -> list[str]:
    """Lines that are folded so that they fit a page with so many blanks before them; the blanks are not added."""
    return [part for line in lines for part in ([line] if line.lstrip().startswith("#") else folded(line, indent))]


def _commented(text: str, says: str) -> list[str]:
    return [f"# {says}", text] if says else [text]


def _term(term: Term, name: str, axes: Mapping[str, Axes]) -> str:
    """One product in the axes of `name`; axes are summed over one after the other, columns first.

    Raises:
        ValueError: the term lacks an axis of `name`, so that its padding would not be zero.
    """
    if set(axes[name]) - set(p.term_axes(term, axes)):
        raise ValueError(f"the term {term.factors} of {name} has not all axes of {axes[name]}")
    parts = [(factor, axes[factor]) for factor in term.factors]
    over = list(reversed(summed(term, name, axes)))
    while over:
        axis = over[0]
        group = [part for part in parts if axis in part[1]]
        rest = [part for part in parts if axis not in part[1]]
        text, left, done = _contraction(group, rest, over)
        over = [each for each in over if each not in done]
        parts = [*rest, (text, left)]
    return _product(parts, axes[name])


Part = tuple[str, Axes]


def _contraction(group: list[Part], rest: list[Part], over: list[str]) -> tuple[str, Axes, Axes]:
    """The sum over the first axis of `over` of a product, its axes, and which axes have been summed over."""
    (axis, *_), found = over, p.ordered({axis for _, axes in group for axis in axes})
    if len(found) == 3:
        text, left = _of_pairs(axis, group)
        return text, left, (axis,)
    if set(found) <= set(over) and not any(set(found) & set(axes) for _, axes in rest):
        return f"tl.sum({_product(group, found)})", (), found
    place = f", axis={found.index(axis)}" if len(found) > 1 else ""
    return f"tl.sum({_product(group, found)}{place})", tuple(each for each in found if each != axis), (axis,)


def _of_pairs(axis: str, group: list[Part]) -> tuple[str, Axes]:
    """The product of two matrices of which one at least is a row for each pair of a window, summed over an axis."""
    vectors = [part for part in group if len(part[1]) == 1]
    one, other = sorted((part for part in group if len(part[1]) == 2), key=lambda part: _WINDOW not in part[1])
    if vectors:
        one = (_product([*vectors, one], one[1]), one[1])
    left = p.ordered({*one[1], *other[1]} - {axis})
    if axis == _WINDOW:
        ordered = sorted((one, other), key=lambda part: p.AXES.index(part[1][1]))
        return f"sum_of_outer_products({', '.join(text for text, _ in ordered)})", left
    name = "products_with_rows" if other[1][1] == axis else "products_with_columns"
    return f"{name}({one[0]}, {other[0]})", left


def _product(parts: list[Part], like: Axes) -> str:
    """Numbers first, then vectors, then matrices."""
    ordered = sorted(parts, key=lambda part: (len(part[1]), [p.AXES.index(axis) for axis in part[1]]))
    return " * ".join(_aligned(text, axes, like) for text, axes in ordered)


def _aligned(text: str, axes: Axes, like: Axes) -> str:
    """A value with an axis of size 1 wherever `like` has one that it lacks."""
    if axes == like or not axes:
        return text
    return f"{text}[{', '.join(':' if axis in axes else 'None' for axis in like)}]"
