from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from trellis_ops import forget
from trellis_ops.dispatch.resolve import VARIABLE


@pytest.fixture
def force(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Run every operator of the test on the implementation named; the empty name is the best one known."""

    def choose(implementation: str) -> None:
        monkeypatch.setenv(VARIABLE, implementation)
        forget()

    yield choose
    monkeypatch.undo()
    forget()


@pytest.fixture
def eager(force: Callable[[str], None]) -> Iterator[None]:
    """Nothing is compiled, and nothing waits for a second thread, which costs tensors this small more than it gains."""
    force("eager")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
