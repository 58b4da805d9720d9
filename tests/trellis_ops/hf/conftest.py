from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def eager(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators in eager PyTorch: what transformers does with a model is tested here, and kernels have their own tests.

    A file that sets `KERNELS = True` has compiled ones.
    """
    if not getattr(request.module, "KERNELS", False):
        monkeypatch.setitem(os.environ, "TRELLIS_OPS_IMPLEMENTATION", "eager")
