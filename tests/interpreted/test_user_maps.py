"""Maps and losses that a user defines, in Triton's kernels, interpreted, against the oracle in float64."""

from __future__ import annotations

import pytest

from codegen.rule import Rule
from tests.interpreted.test_backward import SMALL, triton
from tests.support.cases.backward import check_backward
from tests.support.cases.kernels import Case, check_step
from tests.support.user_maps import GELU, NAMES, RMS_SILU, WRITES


@pytest.mark.parametrize("write", WRITES, ids=NAMES)
def test_forward_and_both_gradients(write: str) -> None:
    """Six slots, padded to sixteen."""
    case = Case(chunk=16, rule=Rule(write, link=RMS_SILU, out=GELU, phi_eps=1e-2, step_size="token"), **SMALL)
    check_backward(triton(variant="backward_chunks"), case)
    check_backward(triton(variant="backward"), case, "first_order", case.inputs(state="zero"))


@pytest.mark.parametrize("write", WRITES, ids=NAMES)
def test_decoding(write: str) -> None:
    rule = Rule(write, link=GELU, out=RMS_SILU, phi_eps=1e-2)
    check_step(triton(), Case("trellis_step", lengths=(1, 1), dim_k=5, dim_v=3, slots=6, rule=rule))
