"""TVM's kernels for CUDA, emulated on this CPU, where one head holds a number that is not finite."""

from __future__ import annotations

import dataclasses
import shutil

import pytest

from codegen.rule import Rule
from tests.codegen.backends.tvm_cuda.test_emulated import With
from tests.emulators.emulated_cuda import COMPILER
from tests.support.cases import non_finite
from tests.support.cases.kernels import Case
from tests.support.cases.non_finite import LENGTHS, packed

pytestmark = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"{COMPILER} is not installed")

# The norm of l2_silu has a floor, which NaN must pass.
RULE = Rule("l2_silu", link="l2_silu", out="l2_silu", phi_eps=1e-2, step_size="token")
SIZES = {"heads": 2, "dim_k": 5, "dim_v": 9, "slots": 6}


@pytest.mark.parametrize(("name", "chunk"), [("l2_silu", 20), ("softmax", 20), ("l2_silu", 1)])
def test_attention(name, chunk):
    rule = dataclasses.replace(RULE, phi=name, link=name, out=name)
    tiles = {"tile_tokens": 8} if chunk > 1 else {}
    case = packed(Case(chunk=chunk, rule=rule, **SIZES))
    non_finite.check_attention(With(**tiles), case, ("k", "log_decay"))


@pytest.mark.parametrize("operator", ["trellis_step", "trellis_step_chunked"])
def test_step(operator):
    case = Case(operator, lengths=(1,) * len(LENGTHS), rule=RULE, **SIZES)
    non_finite.check_step(With(), case)
