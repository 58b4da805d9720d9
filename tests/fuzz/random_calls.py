"""Random cases of one kernel, the same in every run."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz import checks
from tests.fuzz.cases import Case, cases
from tests.fuzz.kernels import Kernel, chosen


def check_random_calls(kernel: Kernel, examples: int, most_tokens: int = 90) -> None:
    """Compare so many cases of `kernel` with the oracle; torch's threads are left as they were."""

    @settings(
        derandomize=True,
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(kernel, most_tokens))
    def every_case_is_right(case: Case) -> None:
        checks.check(case)

    threads = torch.get_num_threads()
    try:
        with chosen(kernel):
            every_case_is_right()
    finally:
        torch.set_num_threads(threads)
