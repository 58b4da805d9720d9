"""Programs of one token and head: named values with axes, each given once by a sum of products or by a row map.

A sum of products is any contraction, outer product or weighted sum: z[m] = sum over d of S[m, d] k[d] has one term with
the factors S and k. Its cotangents are sums of products again: a program of them has a reverse of the same kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

AXES = ("window", "slots", "dim_v", "dim_k")
"""Every axis, in the order in which values have them: those of rows before those of columns."""

Axes: TypeAlias = tuple[str, ...]


@dataclass(frozen=True)
class Term:
    """A number times a product of values.

    Attributes:
        factors: names of values.
        sign: 1 or -1.
    """

    factors: tuple[str, ...]
    sign: int = 1


@dataclass(frozen=True)
class Sum:
    """name[axes] = sum of terms; of each, axes that `name` lacks are summed over.

    Attributes:
        name: of the value.
        terms: what is added up; none for zeros.
        says: the equation, for a comment.
    """

    name: str
    terms: tuple[Term, ...]
    says: str = ""

    @property
    def outputs(self) -> tuple[str, ...]:
        """What it gives."""
        return (self.name,)

    @property
    def inputs(self) -> tuple[str, ...]:
        """What it is computed from."""
        return tuple(dict.fromkeys(factor for term in self.terms for factor in term.factors))


CODE, PUSH, APPLY, PULL = "code", "push", "apply", "pull"
"""Functions of maps: u = code(z, a[, g]), dz, da[, dg] = push(z, a[, g], du), y = apply(z), dz = pull(z, dy)."""

GATE, RECIPROCAL, SOLVE, CAST = "gate", "reciprocal", "solve", "cast"
"""Others: exp(x), 1 / (x + 1e-6), x of (S + diag(l)) x = b, and the same numbers along another axis of equal size.

SOLVE takes S `[slots, dim_k]`, symmetric and positive, l, and b along the one axis, and gives x along the other."""


@dataclass(frozen=True)
class Call:
    """Values given by a function along one axis, for every index of the others.

    Attributes:
        function: one of the above.
        outputs, inputs: names.
        roles: of a map's inputs, in order: z, a (target), g (gain), ct (cotangent).
        gives: of a map's outputs, in order: u, y, dz, da, dg, as `codegen.maps.derive` calls them.
        axis: the row that a map is of; None for functions of single numbers.
        of: what a rule calls the map or loss; empty where there is none.
        eps: "phi" or "readout": which epsilon the map has.
        says: the equation, for a comment.
    """

    function: str
    outputs: tuple[str, ...]
    inputs: tuple[str, ...]
    axis: str | None = None
    of: str = ""
    eps: str = "readout"
    says: str = ""
    roles: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()


Statement: TypeAlias = Sum | Call


@dataclass(frozen=True)
class Program:
    """Statements in order, over values with axes.

    Attributes:
        axes: of every value, those that are given included.
        statements: each after those that it uses.
        moved: by the name of a state, the value that it has after the token.
        results: what else is wanted of it.
        detached: values that no cotangent passes through in a first-order gradient.
    """

    axes: Mapping[str, Axes]
    statements: tuple[Statement, ...]
    moved: Mapping[str, str]
    results: tuple[str, ...]
    detached: frozenset[str] = frozenset()

    @property
    def given(self) -> tuple[str, ...]:
        """What it reads and does not compute, in order of first use."""
        made = {name for each in self.statements for name in each.outputs}
        used = dict.fromkeys(name for each in self.statements for name in each.inputs)
        outs = dict.fromkeys((*self.moved.values(), *self.results))
        return tuple(name for name in {**used, **outs} if name not in made)

    def reduced(self, wanted: Iterable[str]) -> Program:
        """What is needed for some values only."""
        needed, kept = set(wanted), list[Statement]()
        for each in reversed(self.statements):
            if needed & set(each.outputs):
                kept.append(each)
                needed |= set(each.inputs)
        moved = {name: value for name, value in self.moved.items() if value in needed}
        results = tuple(name for name in self.results if name in needed)
        return Program(self.axes, tuple(reversed(kept)), moved, results, self.detached)


@dataclass
class Builder:
    """Collects the statements of a program.

    Attributes:
        axes, statements: as in `Program`.
    """

    axes: dict[str, Axes] = field(default_factory=dict)
    statements: list[Statement] = field(default_factory=list)

    def give(self, **axes: Axes) -> None:
        """Name values that are given."""
        self.axes.update({name: ordered(each) for name, each in axes.items()})

    def sum(self, name: str, axes: Axes, *terms: Term, says: str = "") -> str:
        """A sum of products."""
        self.axes[name] = ordered(axes)
        self.statements.append(Sum(name, terms, says))
        return name

    def call(
        self,
        function: str,
        outputs: Mapping[str, Axes],
        inputs: tuple[str, ...],
        axis: str | None = None,
        of: str = "",
        eps: str = "readout",
        says: str = "",
        roles: tuple[str, ...] = (),
        gives: tuple[str, ...] = (),
    ) -> tuple[str, ...]:
        """A function's values."""
        self.give(**outputs)
        self.statements.append(Call(function, tuple(outputs), inputs, axis, of, eps, says, roles, gives))
        return tuple(outputs)


def ordered(axes: Iterable[str]) -> Axes:
    """Axes in the order of `AXES`."""
    return tuple(sorted(axes, key=AXES.index))


def term_axes(term: Term, axes: Mapping[str, Axes]) -> Axes:
    """All axes of a term's factors."""
    return ordered({axis for factor in term.factors for axis in axes[factor]})


def summed(term: Term, name: str, axes: Mapping[str, Axes]) -> Axes:
    """The axes that a term of the value `name` is summed over."""
    return tuple(axis for axis in term_axes(term, axes) if axis not in axes[name])
