from __future__ import annotations

import gc

import pytest

# vLLM sets variables of its process when it is imported: here, before the tests look at what modules set.
import vllm  # noqa: F401

# Engines collect garbage when they start and when they end: without what vLLM brings, which takes most of that time.
gc.collect()
gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def settings_are_left_alone() -> None:
    """Nothing: an engine binds the threads of its process and sets variables for them."""
