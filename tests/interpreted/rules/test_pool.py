"""The Triton kernel whose states lie in a pool, in its interpreter, against the oracle on each sequence alone."""

from __future__ import annotations

import pytest
import torch

from tests.support.pooled import expected
from tests.support.relative_error import relative_error
from tests.trellis_ops.pool.test_pool import CASES, served_to_the_end


@pytest.mark.parametrize("name", CASES)
def test_rows_that_take_turns_are_each_as_alone(name):
    served = served_to_the_end(CASES[name], "triton")
    for n, right in enumerate(expected(served)):
        assert relative_error(torch.cat(served.y[n]), right) < 1e-5
