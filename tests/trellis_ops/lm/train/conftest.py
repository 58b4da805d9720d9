from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `--threads` sets for a whole process ends with the test."""
    monkeypatch.setenv("TVM_NUM_THREADS", "1")
