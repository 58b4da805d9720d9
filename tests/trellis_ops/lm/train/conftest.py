from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def torch_threads() -> Iterator[None]:
    """What `--threads` sets for a whole process ends with the module, whose runs are made before any test."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `--threads` sets for a whole process ends with the test."""
    monkeypatch.setenv("TVM_NUM_THREADS", "1")
