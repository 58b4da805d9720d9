"""Kernels run by Triton's interpreter, on the CPU.

Triton decides at its import whether it interprets, so these tests need a process of their own:

    python -m pytest tests/interpreted
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ALONE = "tests/interpreted needs a process of its own: python -m pytest tests/interpreted"

if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
    raise pytest.UsageError(ALONE)
os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse company: other tests would find Triton interpreting."""
    if any(Path(__file__).parent not in item.path.parents for item in items):
        raise pytest.UsageError(ALONE)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Every buffer that a program allocates between its kernels starts as NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)
