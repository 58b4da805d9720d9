from __future__ import annotations

from dataclasses import replace

import pytest

from codegen.device import NAMED
from codegen.rule import Rule
from codegen.schedules.known_bad import known_bad
from codegen.schedules.legality import why_illegal
from codegen.schedules.registry import SCHEDULES, default
from codegen.schedules.triton import TritonSchedule
from codegen.schedules.triton_between import OF_BETWEEN
from codegen.spec import OPERATORS, Problem, Spec

SPEC = Spec(Rule(), Problem(dtype="bfloat16"))
REPORTED = TritonSchedule("fused", 16, num_warps=4, num_stages=1, dot_precision="tf32", ptxas="standard")


def test_what_is_known_to_be_miscompiled_is_illegal_and_the_reason_names_the_issue():
    reason = why_illegal(SPEC, REPORTED, NAMED["sm_90"])
    assert "ptxas 12.8.93" in reason
    assert reason.endswith("(https://github.com/triton-lang/triton/issues/11366)")


@pytest.mark.parametrize("change", [{"num_warps": 8}, {"ptxas": "blackwell"}])
def test_what_was_found_to_be_right_stays_legal(change):
    assert why_illegal(SPEC, replace(REPORTED, **change), NAMED["sm_90"]) is None


def test_every_variant_with_products_is_concerned():
    walks = {"recurrent", "recurrence", "recurrence_backward", "pool"}
    (entry,) = known_bad()
    assert set(entry.settings["variant"]) == set(TritonSchedule.own_variants) - walks - set(OF_BETWEEN)


def test_other_devices_are_not_concerned():
    assert why_illegal(SPEC, REPORTED, NAMED["sm_80"]) is None
    assert why_illegal(SPEC, replace(REPORTED, dot_precision="ieee"), NAMED["gfx942"]) is None
    assert "one assembler only" in why_illegal(SPEC, replace(REPORTED, ptxas="blackwell"), NAMED["gfx942"])


def test_every_entry_is_complete_and_names_real_settings():
    for entry in known_bad():
        assert entry.reason
        assert entry.issues
        assert all(issue.startswith("https://github.com/") for issue in entry.issues)
        choices = SCHEDULES[entry.backend].choices
        for name, values in entry.settings.items():
            assert name == "variant" or set(values) <= set(choices[name])


@pytest.mark.parametrize("device", NAMED.values(), ids=lambda device: device.arch)
def test_no_default_is_known_bad(device):
    backend = "tvm" if device.kind == "cpu" else "triton"
    for operator in OPERATORS:
        step = operator.startswith("trellis_step")
        spec = Spec(Rule(), Problem(operator, tokens=1 if step else 256, chunk=1 if step else 16))
        assert why_illegal(spec, default(backend, spec, device), device) is None
