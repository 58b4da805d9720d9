"""Programs of a token as functions of PyTorch, for N sequences and heads at once: values are `[N, *axes]`."""

from __future__ import annotations

import functools
import linecache
from collections.abc import Callable, Mapping
from typing import Any

from codegen.maps import registry
from codegen.maps.emit import pytorch as of_maps
from codegen.recurrence import program as p
from codegen.recurrence.maps import expressions
from codegen.recurrence.program import Axes, Call, Program, Statement, Sum, Term, summed
from codegen.rule import READOUT_EPS, Rule


def source(program: Program, rule: Rule, bilevel: bool = True) -> str:
    """A function `token(<given>)` that gives the moved states, then the results; and what it calls.

    Args:
        program: of a token.
        rule: whose epsilon it has.
        bilevel: whether cotangents pass through z.
    """
    functions, lines = dict[str, str](), list[str]()
    for each in program.statements:
        if each.says:
            lines.append(f"# {each.says}")
        lines.append(_statement(each, program, rule, functions))
        lines += [f"{x} = {x}.detach()" for x in each.outputs if not bilevel and x in program.detached]
    outs = (*program.moved.values(), *program.results)
    body = "".join(f"    {line}\n" for line in (*lines, f"return {', '.join(outs)},"))
    return "".join(functions.values()) + f"def token({', '.join(program.given)}):\n{body}"


def _statement(each: Statement, program: Program, rule: Rule, functions: dict[str, str]) -> str:
    if isinstance(each, Sum):
        if not each.terms:
            like = next(name for name in program.given if program.axes[name] == program.axes[each.name])
            return f"{each.name} = torch.zeros_like({like})"
        text = " ".join(
            f"{'-' if term.sign < 0 else '+'} {_term(term, each.name, program.axes)}" for term in each.terms
        )
        return f"{each.name} = {text.removeprefix('+ ')}"
    if each.function == p.CAST:
        return f"{each.outputs[0]} = {each.inputs[0]}"
    if each.function == p.GATE:
        return f"{each.outputs[0]} = torch.exp({each.inputs[0]})"
    if each.function == p.RECIPROCAL:
        return f"{each.outputs[0]} = 1 / ({each.inputs[0]} + {READOUT_EPS!r})"
    if each.function == p.SOLVE:
        return _solve(each, program)
    return _call(each, program, rule, functions)


def _call(each: Call, program: Program, rule: Rule, functions: dict[str, str]) -> str:
    name = f"{each.function}_{registry.find(each.of).key.replace('@', '_')}_{'_'.join(each.gives)}"
    head = f"{name}({', '.join((*each.roles, 'eps'))})"
    functions[name] = of_maps.function(
        head, f"{', '.join(each.gives)}, by {registry.find(each.of).name}.", expressions(each)
    )
    eps = rule.phi_eps if each.eps == "phi" else READOUT_EPS
    return f"{', '.join(each.outputs)} = {name}({', '.join(each.inputs)}, {eps!r})"


def _solve(each: Call, program: Program) -> str:
    state, regulariser, b = each.inputs
    matrix = f"{state} + torch.diag_embed({regulariser})"
    if program.axes[b] == program.axes[state][1:]:
        matrix = f"({matrix}).mT"
    return f"{each.outputs[0]} = torch.linalg.solve({matrix}, {b})"


def _term(term: Term, name: str, axes: Mapping[str, Axes]) -> str:
    """One product as text, in the axes of `name`."""
    over = summed(term, name, axes)
    if not over:
        factors = [_aligned(factor, axes[factor], axes[name]) for factor in term.factors]
        return " * ".join(factors)
    outside = [factor for factor in term.factors if not set(over) & set(axes[factor])]
    inside = [factor for factor in term.factors if factor not in outside]
    text, left = _contraction(inside, over, axes)
    factors = [_aligned(factor, axes[factor], axes[name]) for factor in outside]
    return " * ".join([*factors, _aligned(text, left, axes[name])])


def _contraction(factors: list[str], over: Axes, axes: Mapping[str, Axes]) -> tuple[str, Axes]:
    """A sum over axes of a product whose factors all have some of them; and the axes that are left."""
    matrices = [factor for factor in factors if len(axes[factor]) == 2]
    vectors = {axis: [factor for factor in factors if axes[factor] == (axis,)] for axis in over}
    if len(matrices) == 1 and all(vectors.values()):
        (matrix,) = matrices
        text, left = matrix, axes[matrix]
        if over[-1] == left[-1]:
            text, left = f"torch.matmul({text}, ({' * '.join(vectors[over[-1]])})[..., None])[..., 0]", left[:1]
            over = over[:-1]
        if over and len(left) == 2:
            return f"torch.matmul(({' * '.join(vectors[over[0]])})[:, None, :], {text})[:, 0]", left[1:]
        return (f"({' * '.join(vectors[over[0]])} * {text}).sum(-1)", ()) if over else (text, left)
    if not matrices and len(over) == 1:
        return f"({' * '.join(factors)}).sum(-1)", ()
    letters = dict(zip(p.AXES, "imvk", strict=True))
    left = p.ordered({axis for factor in factors for axis in axes[factor]} - set(over))
    operands = ",".join("n" + "".join(letters[axis] for axis in axes[factor]) for factor in factors)
    result = "n" + "".join(letters[axis] for axis in left)
    return f"torch.einsum('{operands}->{result}', {', '.join(factors)})", left


def _aligned(text: str, axes: Axes, like: Axes) -> str:
    """A value with an axis of size 1 wherever `like` has one that it lacks."""
    if axes == like or not like:
        return text
    places = [":" if axis in axes else "None" for axis in like]
    return f"{text}[:, {', '.join(places)}]"


@functools.cache
def compiled(program_of: Callable[..., Program], rule: Rule, *options: bool) -> tuple[Program, Callable[..., Any]]:
    """A program and its function `token`; the last option is `bilevel`."""
    import torch

    program = program_of(rule, *options) if program_of.__name__ == "reverse_program" else program_of(rule, options[0])
    text = source(program, rule, options[-1])
    filename = f"<a token of {rule.key()}, {options}, in torch>"
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    found: dict[str, Any] = {"torch": torch}
    exec(compile(text, filename, "exec"), found)
    return program, found["token"]
