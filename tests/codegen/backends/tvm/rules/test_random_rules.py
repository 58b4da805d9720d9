"""Random legal rules on TVM's kernels: results, states and gradients against the oracle."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import strategies as st

from codegen.recurrence.tensors import states, tensors
from codegen.rule import SOLVE, Rule
from tests.trellis_ops.family.cases import Case, inputs, rules
from tests.trellis_ops.family.runs import examples, gradients, leaves
from trellis_ops import family_reference
from trellis_ops.calls.called_rule import called
from trellis_ops.operators import family

OF_ROUNDING = 30.0
"""How many times as much as eager float32 loses a kernel may lose, where that is more than usual."""


@drawn(rule=rules(), chunk=st.sampled_from((1, 4)), outer=st.sampled_from(("bilevel", "first_order")))
@examples(4)
def test_a_random_rule(rule, chunk, outer):
    case = Case(rule, 1 if rule.decay_first else chunk, batch=2, tokens=9, heads=2, dim_k=6, dim_v=5, slots=4)
    exact = _run(case, "oracle", torch.float64, outer)
    eager, kernel = (_run(case, each, torch.float32, outer) for each in ("eager", "tvm"))
    for name, x in exact.items():
        if not x.isfinite().all() or float(x.abs().max()) > 1e6:
            continue  # A rule that diverges has no right value in float32.
        least = 1e-2 * max(1.0, float(x.abs().max()))
        loss, error = (float((each[name].double() - x).norm()) for each in (eager, kernel))
        size = max(float(x.norm()), least)
        allowed = max((1e-4 if name.startswith("of ") else 1e-5) * size, OF_ROUNDING * loss)
        assert error <= allowed, f"{name}: {error / size:.1e} where eager loses {loss / size:.1e}, {rule.key()}"


def _run(case: Case, form: str, dtype: torch.dtype, outer: str) -> dict[str, torch.Tensor]:
    rule = case.rule
    given, initial = leaves(*inputs(case, dtype))
    if rule.link == SOLVE:
        given["target"] = given["k"]
    if form == "oracle":
        y, finals = family_reference.memory_attention(rule, given, initial, chunk_size=case.chunk, outer_gradient=outer)
    else:
        text = called(rule, given["step_size"].ndim).text
        ordered = [given[each.name] for each in tensors(rule)]
        settings = (text, case.chunk, outer, True, form)
        y, *rest = family.attention(ordered, [initial[name] for name in states(rule)], None, *settings)
        finals = dict(zip(states(rule), rest, strict=False))
    found = gradients(y, finals, {k: x for k, x in given.items() if k != "target" or rule.link != SOLVE}, initial)
    return {"y": y.detach(), **{name: x.detach() for name, x in finals.items()}, **found}


def test_the_comparison_can_fail():
    case = Case(Rule(passes=1, phi="identity"))
    one, other = _run(case, "oracle", torch.float64, "bilevel"), _run(case, "eager", torch.float32, "first_order")
    assert one.keys() == other.keys()
    with pytest.raises(AssertionError):
        torch.testing.assert_close(one["of k"], other["of k"].double())
