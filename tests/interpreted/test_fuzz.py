"""Random calls of random Triton kernels, interpreted, against the oracle; `make fuzz` goes on with fresh ones."""

from __future__ import annotations

import pytest

from tests.fuzz.kernels import KINDS, draw_kernels
from tests.fuzz.random_calls import check_random_calls
from tests.fuzz.rules.drawn import KINDS as OF_RULES

SEED = 2512
MOST_TOKENS = 10
KERNELS = draw_kernels(SEED, (*KINDS, *OF_RULES), "triton")


@pytest.mark.parametrize("kernel", KERNELS, ids=[f"{n}-{kernel.spec.key()}" for n, kernel in enumerate(KERNELS)])
def test_random_calls(kernel):
    check_random_calls(kernel, 3 if kernel.spec.problem.direction == "forward" else 2, MOST_TOKENS)
