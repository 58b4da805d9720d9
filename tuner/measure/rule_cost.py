"""What a call of any rule costs at least: the products of its token's program, and every value moved once.

The program is that of docs/rules.md's equation, token by token. A sum over an axis or an outer product takes two
operations for each of its numbers; scalings, gates and maps are left out, and a solve counts as one product with its
matrix, the least that any way to solve does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from codegen.kernels.arguments import BYTES_OF, IN_PLACE, INPUT, READ, Argument
from codegen.kernels.buffers import length
from codegen.kernels.declared import operator_arguments
from codegen.kernels.rule_arguments import KEPT, is_chunked
from codegen.limits.extent import Extent
from codegen.recurrence.of_rule import token_program
from codegen.recurrence.program import SOLVE, Axes, Call, Program, Term, term_axes
from codegen.recurrence.reverse import reverse_program
from codegen.recurrence.tensors import states
from codegen.spec import Spec

_STATE_BYTES = 4


def flops_of(spec: Spec) -> int:
    """Floating-point operations, a multiply-add counted as two; a backward includes its forward."""
    problem, chunked = spec.problem, is_chunked(spec)
    sizes = {axis: _size(axis, spec) for axis in ("window", "slots", "dim_v", "dim_k")}
    per_row = _products(token_program(spec.rule, chunked), sizes)
    if problem.direction != "forward":
        reverse = reverse_program(spec.rule, chunked, problem.direction != "backward_first_order")
        per_row += _products(reverse, sizes)
    return problem.batch * problem.tokens * problem.heads * per_row


def bytes_of(spec: Spec) -> int:
    """Bytes read and written if every value moves once, or inputs twice where a backward reads them again."""
    readings = 1 if spec.problem.direction == "forward" else 2
    total = 0
    for argument in operator_arguments(spec):
        if not argument.name.startswith(KEPT):
            times = {READ: readings, IN_PLACE: 2}.get(argument.access, 1)
            total += times * _bytes(argument, spec)
    return total


def state_bytes(spec: Spec) -> int:
    """Bytes of all states that a rule carries, for all sequences and heads."""
    per_head = sum(math.prod(_size(axis, spec) for axis in axes) for axes in states(spec.rule).values())
    return spec.problem.batch * spec.problem.heads * per_head * _STATE_BYTES


def _products(program: Program, sizes: Mapping[str, int]) -> int:
    total = 0
    for statement in program.statements:
        if isinstance(statement, Call):
            if statement.function == SOLVE:
                total += 2 * sizes["slots"] * sizes["dim_k"]
            continue
        own = program.axes[statement.name]
        total += sum(_of_term(term, own, program.axes, sizes) for term in statement.terms)
    return total


def _of_term(term: Term, own: Axes, axes: Mapping[str, Axes], sizes: Mapping[str, int]) -> int:
    spanned = term_axes(term, axes)
    scales = any(axes[factor] == spanned for factor in term.factors) and set(spanned) == set(own)
    return 0 if scales else 2 * math.prod(sizes[axis] for axis in spanned)


def _bytes(argument: Argument, spec: Spec) -> int:
    wide = BYTES_OF[spec.problem.dtype if argument.type == INPUT else argument.type]
    return math.prod(_size(axis, spec) for axis in argument.axes) * wide


def _size(axis: str, spec: Spec) -> int:
    problem = spec.problem
    extent = Extent(problem.batch * problem.tokens, problem.heads, problem.batch, 0, 0)
    return length(axis, spec, None, extent)
