"""Programs with their sums taken apart: contractions, each of one product over one axis, and sums over none."""

from __future__ import annotations

from collections.abc import Iterable

from codegen.recurrence.program import Axes, Builder, Program, Statement, Sum, Term, ordered, summed, term_axes

WINDOW = "window"


def taken_apart(program: Program) -> Program:
    """The same values by sums of two kinds; equal contractions are made once.

    - Contractions: one product, summed over its last axis or, where they are all matrices over the same axes, over both
      of them. S k is one, and so is the sum over columns of S dS.
    - Sums over nothing, or, of a matrix, over the pairs of a window.

    What a contraction can be multiplied with afterwards stays out of it: the cotangents of u and of step_size
    share one.
    """
    made = _Apart(program)
    statements: list[Statement] = []
    for each in program.statements:
        if isinstance(each, Sum):
            plain = made.taken(each)
            statements += made.build.statements
            made.build.statements.clear()
            statements += [plain] if plain is not None else []
        else:
            statements.append(each)
    return Program(made.build.axes, tuple(statements), program.moved, program.results, program.detached)


class _Apart:
    def __init__(self, program: Program) -> None:
        self.build = Builder(dict(program.axes))
        self.known: dict[tuple[Axes, tuple[str, ...]], str] = {}

    def taken(self, each: Sum) -> Sum | None:
        """What is left of a sum; None if a contraction has its name."""
        terms = [self._term(term, each) for term in each.terms]
        if terms == [Term((each.name,))]:
            return None
        return Sum(each.name, tuple(terms), each.says)

    def _term(self, term: Term, each: Sum) -> Term:
        """A term of the same value that is summed over nothing."""
        while over := summed(term, each.name, self.build.axes):
            every = term_axes(term, self.build.axes)
            if over == (WINDOW,) and len(every) == 3:
                return term
            term = self._contracted(term, over, each)
        return term

    def _contracted(self, term: Term, over: Axes, each: Sum) -> Term:
        axes = self.build.axes
        inner = sorted(factor for factor in term.factors if over[-1] in axes[factor])
        own = ordered({axis for factor in inner for axis in axes[factor]})
        whole = len(own) == 2 and all(axes[factor] == own for factor in inner) and set(own) <= set(over)
        left = () if whole else tuple(axis for axis in own if axis != over[-1])
        outside = list(term.factors)
        for factor in inner:
            outside.remove(factor)
        alone = len(each.terms) == 1 and not outside and term.sign == 1 and left == axes[each.name]
        name = self._named(left, tuple(inner), each, alone)
        return Term((*outside, name), term.sign)

    def _named(self, left: Axes, factors: tuple[str, ...], each: Sum, alone: bool) -> str:
        key = (left, factors)
        if key not in self.known:
            name = each.name if alone else self._unused("_by_".join(_by_size(factors, self.build.axes)))
            says = each.says if alone else f"{name} = {' '.join(_by_size(factors, self.build.axes))}"
            self.known[key] = self.build.sum(name, left, Term(factors), says=says)
        return self.known[key]

    def _unused(self, name: str) -> str:
        while name in self.build.axes:
            name += "_"
        return name


def _by_size(factors: Iterable[str], axes: dict[str, Axes]) -> list[str]:
    return sorted(factors, key=lambda factor: -len(axes[factor]))
