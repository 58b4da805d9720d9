from __future__ import annotations

import gc
import os
from collections.abc import Iterator

# Read when torch loads its OpenMP runtime. Its idle threads spin after each parallel region, and two workers of pytest
# on two cores have four of them: half as much processor time again as the tests need.
os.environ.setdefault("GOMP_SPINCOUNT", "200")

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.thorough import selection

# How fast a machine is, and how busy, must not decide whether a test passes.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

pytest_addoption = selection.add_option

_OURS = ("TRELLIS_OPS_", "TRITON_", "GOMP_", "OMP_")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What a module sets when it is imported must not decide whether the others' tests pass, either."""
    before = _settings()[0]
    # What is imported and collected stays to the end, and takes a quarter of the collection's time to look through.
    gc.disable()
    try:
        result = yield
    finally:
        gc.freeze()
        gc.enable()
    changed = _settings()[0].items() - before.items()
    assert not changed, f"the import of a test module has set {changed}"
    return result


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    selection.select(config, items)


@pytest.fixture(scope="module", autouse=True)
def settings_are_left_alone() -> Iterator[None]:
    """What a module sets for its process must not decide whether the next module's tests pass."""
    before = _settings()
    yield
    assert _settings() == before


def _settings() -> tuple[dict[str, str], int]:
    environment = {name: value for name, value in os.environ.items() if name.startswith(_OURS)}
    return environment, torch.get_num_threads()
