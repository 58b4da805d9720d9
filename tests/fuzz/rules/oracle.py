"""What a case of any rule should give."""

from __future__ import annotations

import torch
from torch import Tensor

from codegen.recurrence.of_rule import used_chunk_states
from codegen.recurrence.tensors import states, tensors
from codegen.rule import SOLVE
from codegen.spec import CHUNKED_STEP, POOL_OPERATOR
from tests.fuzz.cases import Case
from tests.fuzz.rules.drawn import STEPS
from tests.fuzz.rules.values import Named, moved_states
from trellis_ops import family_reference


def outputs(case: Case, t: Named, offsets: Tensor | None, dtype: torch.dtype) -> Named:
    """y, and the states after the last token."""
    rule, problem = case.kernel.spec.rule, case.kernel.spec.problem
    given = {each.name: t["k" if each.name == "target" and rule.link == SOLVE else each.name] for each in tensors(rule)}
    first = {name: t[name] for name in states(rule) if name in t}
    if problem.operator in STEPS:
        starts = {name: t[name] for name in used_chunk_states(rule, problem.operator == CHUNKED_STEP)}
        y, finals, kept = family_reference.memory_step(rule, given, first, starts or None, dtype=dtype)
        found = finals | kept
        return {"y": y} | {name: found[name] for name in moved_states(case)}
    if problem.operator == POOL_OPERATOR:
        first = {name: x.expand(len(case.lengths), *x.shape[1:]) for name, x in first.items()}
    y, finals = family_reference.memory_attention(
        rule,
        given,
        first,
        chunk_size=problem.chunk,
        cu_seqlens=offsets,
        outer_gradient="first_order" if problem.direction == "backward_first_order" else "bilevel",
        dtype=dtype,
    )
    return {"y": y} | finals
