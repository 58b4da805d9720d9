"""Rules of one pass by the two kernels of one memory, in Triton's interpreter."""

from __future__ import annotations

from tests.support.cases.split import check_split, each_case


@each_case
def test_the_kernels_of_one_memory_compute_a_rule_of_one_pass(phi, chunk):
    check_split(phi, chunk, None)
