"""Rules of one pass with C = 1 by forward substitution inside a tile on Triton, against the eager walk."""

from __future__ import annotations

import dataclasses

import pytest

from codegen.device import cpu
from codegen.kernels.build import build
from codegen.kernels.operator import CompiledOperator
from codegen.rule import Rule
from codegen.rules import NAMED, rule_named
from codegen.schedules.legality import why_illegal
from codegen.schedules.triton import TritonSchedule
from codegen.spec import Problem, Spec
from tests.support.cases.recurrence import Run, check_attention
from tests.trellis_ops.family.cases import Case

SCHEDULE = TritonSchedule("substitution_one_pass", 16, num_warps=4, num_stages=1, dot_precision="ieee")
DECAY_FIRST = Rule("ln_silu", passes=1, decay_first=True, phi_eps=1e-2)


def triton(spec: Spec) -> CompiledOperator:
    precision = "ieee" if spec.problem.dtype == "float32" else "tf32x3"
    return build(spec, dataclasses.replace(SCHEDULE, dot_precision=precision), cpu())


@pytest.mark.parametrize("rule", [rule_named("yaad"), DECAY_FIRST], ids=["yaad", "decay_first"])
def test_tiles_and_a_shorter_one_of_packed_sequences(rule):
    case = Case(rule, batch=1, tokens=40, heads=1, dim_k=12, dim_v=10, slots=6)
    check_attention(triton, Run(case, packed=(0, 21, 21, 40)))


def test_bfloat16():
    case = Case(rule_named("yaad"), batch=1, tokens=20, heads=1, dim_k=12, dim_v=10, slots=6)
    check_attention(triton, Run(case, dtype="bfloat16"))


def reason(rule: Rule, operator: str, variant: str, chunk: int) -> str | None:
    spec = Spec(rule, Problem(operator, chunk=chunk))
    return why_illegal(spec, dataclasses.replace(SCHEDULE, variant=variant), cpu())


def test_it_is_admitted_where_z_of_one_token_is_substituted():
    admitted = {
        name for name, named in NAMED.items() if not reason(named.rule, "memory_attention", SCHEDULE.variant, 1)
    }
    assert admitted == {"gated_deltanet", "delta_product", "yaad", "moneta"}
    assert reason(Rule(), "trellis_attention", "substitution", 1) is None
    assert "chunk of 16 tokens" in str(reason(Rule(), "trellis_attention", "substitution", 16))
    assert "chunk of 16 tokens" in str(reason(rule_named("yaad"), "memory_attention", SCHEDULE.variant, 16))
    assert "nothing to substitute" in str(reason(Rule("hebbian"), "trellis_attention", "substitution", 1))
