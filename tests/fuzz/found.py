"""Cases that fuzzing found, smaller where that shows the same; each was wrong once."""

from __future__ import annotations

from codegen.rule import Rule
from codegen.spec import Problem, Spec
from tests.fuzz.cases import Case
from tests.fuzz.kernels import Kernel


def _attention(rule: Rule, **sizes: int) -> Kernel:
    problem = Problem("trellis_attention", batch=1, tokens=1, heads=1, direction="backward", **sizes)
    return Kernel(Spec(rule, problem), None)


FOUND = {
    "a_saturated_softmax": Case(
        _attention(Rule("softmax", "l2_silu", "l2_silu"), dim_k=15, dim_v=2, slots=16, chunk=5),
        lengths=(4, 4),
        heads=3,
        seed=13,
        log_decays=(-80.0,),
        state=100.0,
        wanted=("k", "q"),
    ),
    "equal_slots_of_ln_silu": Case(
        Kernel(
            Spec(
                Rule("ln_silu", phi_eps=1e-12, step_size="token"),
                Problem("memory_update", 1, 1, 1, dim_k=32, dim_v=32, slots=8, chunk=13),
            ),
            None,
        ),
        lengths=(1,),
        heads=2,
        layouts=("contiguous",) * 6 + ("expanded heads", "contiguous"),
        wanted=("k",),
    ),
}
"""By what was wrong in them."""
