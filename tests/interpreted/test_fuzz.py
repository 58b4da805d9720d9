"""Random calls of random Triton kernels, interpreted, against the oracle; `make fuzz` goes on with fresh ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz import checks
from tests.fuzz.cases import Case, cases
from tests.fuzz.kernels import KINDS, chosen, draw_kernels

SEED = 2512
MOST_TOKENS = 10
KERNELS = draw_kernels(SEED, KINDS, "triton")


@pytest.fixture(autouse=True)
def torch_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("kernel", KERNELS, ids=[f"{n}-{kernel.spec.key()}" for n, kernel in enumerate(KERNELS)])
def test_random_calls(kernel):
    @settings(
        derandomize=True,
        max_examples=3 if kernel.spec.problem.direction == "forward" else 2,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(kernel, MOST_TOKENS))
    def every_case_is_right(case: Case) -> None:
        checks.check(case)

    with chosen(kernel):
        every_case_is_right()
