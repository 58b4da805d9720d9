"""A case of any rule by the public operators."""

from __future__ import annotations

from torch import Tensor

from codegen.recurrence.of_rule import used_chunk_states
from codegen.recurrence.tensors import states, tensors
from codegen.spec import CHUNKED_STEP, POOL_OPERATOR
from tests.fuzz.cases import Case
from tests.fuzz.rules.drawn import STEPS
from tests.fuzz.rules.pools import served
from tests.fuzz.rules.values import Named, moved_states
from trellis_ops import memory_attention, memory_step


def outputs(case: Case, t: Named, offsets: Tensor | None) -> Named:
    """y, and the states after the last token."""
    rule, problem = case.kernel.spec.rule, case.kernel.spec.problem
    if problem.operator == POOL_OPERATOR:
        return served(case, t)
    named = {each.name: t[each.name] for each in tensors(rule) if each.name in t}
    if rule.erase:
        named["erase"] = (named.pop("erase_a"), named.pop("erase_b"))
    settings = {"rule": rule, "implementation": case.kernel.backend}
    if problem.operator in STEPS:
        starts = tuple(t[name] for name in used_chunk_states(rule, True)) if problem.operator == CHUNKED_STEP else None
        state = tuple(t[name] for name in states(rule))
        y = memory_step(**named, state=state, chunk_state=starts, **settings)
        return {"y": y} | {name: t[name] for name in moved_states(case)}
    y, finals = memory_attention(
        **named,
        chunk_size=problem.chunk,
        initial_state=tuple(t[name] for name in states(rule)) if case.state is not None else None,
        output_final_state=True,
        cu_seqlens=offsets,
        outer_gradient="first_order" if problem.direction == "backward_first_order" else "bilevel",
        **settings,
    )
    assert finals is not None
    return {"y": y} | dict(zip(states(rule), finals, strict=True))
