from __future__ import annotations

import pytest

from codegen.backends import Resources
from codegen.device import NAMED
from codegen.rule import Rule
from codegen.schedules.registry import default
from codegen.spec import Problem, Spec
from tuner.offline.offline import MOST_SPILLED, examine, examine_some, why_pruned

SM_90 = NAMED["sm_90"]
SPEC = Spec(Rule(), Problem(chunk=16, dim_k=16, dim_v=16, slots=16, dtype="bfloat16"))


@pytest.mark.parametrize(
    ("needs", "said"),
    [
        (Resources(registers=128, spill_bytes=0, shared_bytes=49_152), None),
        (Resources(registers=255, spill_bytes=MOST_SPILLED, shared_bytes=49_152), None),
        (Resources(), None),
        (Resources(registers=128, spill_bytes=MOST_SPILLED + 8, shared_bytes=0), "memory_step spills"),
        (Resources(registers=128, spill_bytes=0, shared_bytes=300_000), "300,000 bytes of shared memory"),
        (Resources(registers=520, spill_bytes=0, shared_bytes=0), "520 registers in 128 threads"),
    ],
)
def test_candidates_are_pruned_by_what_they_need(needs, said):
    schedule = default("triton", SPEC, SM_90)
    assert schedule.num_warps == 4
    reason = why_pruned("memory_step", needs, schedule, SM_90)
    assert reason is None if said is None else said in reason


def test_the_default_is_compiled_for_a_gpu_that_is_not_here():
    (examined,) = examine_some(SPEC, SM_90, most=1, seconds=60)
    assert examined.schedule == default("triton", SPEC, SM_90)
    assert examined.reason is None
    assert [kernel for kernel, _ in examined.kernels] == ["trellis_update", "memory_readout"]
    for _, needs in examined.kernels:
        assert 0 < needs.registers <= 255
        assert 0 < needs.shared_bytes <= SM_90.shared_bytes


def test_the_time_for_examining_is_bounded():
    assert len(list(examine_some(SPEC, SM_90, most=1000, seconds=0.0))) == 1


def test_a_candidate_that_does_not_compile_is_pruned_with_the_reason(templates):
    (templates / "triton" / "trellis_update.py.j2").write_text("{{ missing.name }}")
    examined = examine(SPEC, default("triton", SPEC, SM_90), SM_90)
    assert examined.kernels == ()
    assert "'missing' is undefined" in examined.reason
