from __future__ import annotations

import pytest

# vLLM sets variables of its process when it is imported: here, before the tests look at what modules set.
import vllm  # noqa: F401


@pytest.fixture(scope="module", autouse=True)
def settings_are_left_alone() -> None:
    """Nothing: an engine binds the threads of its process and sets variables for them."""
