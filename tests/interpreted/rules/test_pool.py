"""The Triton kernel whose states lie in a pool, in its interpreter, against the oracle on each sequence alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from triton.runtime.interpreter import GridExecutor

from tests.support.pooled import expected, serving
from tests.support.relative_error import relative_error
from tests.trellis_ops.pool.test_pool import CASES, served_to_the_end
from trellis_ops.calls import values
from trellis_ops.pool import operators

AWAITED = ("tolist", "item", "numpy", "cpu", "nonzero", "equal", "unique", "masked_select")
AWAITED += ("__bool__", "__int__", "__index__", "__float__", "__contains__")
"""Methods of tensors that return after the device has computed all before them."""


class NothingIsAwaited(TorchFunctionMode):
    """Refuses what no CUDA graph can hold."""

    def __torch_function__(self, called: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert called.__name__ not in AWAITED, f"{called.__name__} waits for the device"
        return called(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", CASES)
def test_rows_that_take_turns_are_each_as_alone(name):
    served = served_to_the_end(CASES[name], "triton")
    for n, right in enumerate(expected(served)):
        assert relative_error(torch.cat(served.y[n]), right) < 1e-5


@pytest.mark.parametrize("turn", [{0: 1, 2: 1}, {0: 1, 1: 6}], ids=["tokens of rows", "a packed prompt beside one"])
def test_nothing_of_a_call_is_awaited(turn, monkeypatch):
    """So that a CUDA graph can hold it; what is read on a CPU alone is left out, and so is the interpreter."""
    served = serving(CASES["trellis"], (2, 0, 1), 4)
    served.call({0: 2}, "triton")
    served.call(turn, "triton", skipped=1)
    launched = []
    monkeypatch.setattr(GridExecutor, "__call__", lambda kernel, *_, **__: launched.append(kernel))
    with pytest.raises(AssertionError, match="tolist waits for the device"), NothingIsAwaited():
        served.call(turn, "triton", skipped=1)
    monkeypatch.setattr(operators, "check_rows", lambda *_: None)
    monkeypatch.setattr(values, "check_offsets", lambda *_, **__: None)
    with NothingIsAwaited():
        served.call(turn, "triton", skipped=1)
    assert len(launched) == 1
