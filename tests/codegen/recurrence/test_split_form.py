"""Rules of one pass by the two kernels of one memory, on TVM, and the rules that are not computed so."""

from __future__ import annotations

import pytest
import torch

from codegen.device import cpu
from codegen.schedules.tvm import TvmSchedule
from tests.support.cases.split import NOT_COMPUTED, check_split, each_case, reason

WIDTH = cpu().vector_bits // 32
SCHEDULE = TvmSchedule("split_one_pass", WIDTH, WIDTH, accumulators=8, threads=2)


@each_case
def test_the_kernels_of_one_memory_compute_a_rule_of_one_pass(phi, chunk):
    check_split(phi, chunk, SCHEDULE)


def test_bfloat16():
    check_split("huber", 16, SCHEDULE, torch.bfloat16)


@pytest.mark.parametrize("fields", NOT_COMPUTED, ids=str)
def test_a_rule_that_needs_more_is_not_computed_so(fields):
    assert reason(fields)


def test_one_token_alone_is_not_computed_so():
    assert reason({"phi": "huber"}, chunk=1) and not reason({"phi": "hebbian"}, chunk=1)


def test_a_decay_before_the_write_is_computed_so_where_u_needs_no_z():
    assert not reason({"phi": "hebbian", "decay_first": True})
