from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock  # noqa: F401  (loaded before a test gives up the right to read every folder)
import pytest

from tuning_db import Store, TuningDatabaseWarning


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "user", tmp_path / "shipped")


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    """The texts of the warnings so far, as in a fresh process; one that is not the database's fails the test."""
    monkeypatch.setattr("tuning_db.warning._warned", set())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield lambda: [str(each.message) for each in caught]
    assert [each.message for each in caught if each.category is not TuningDatabaseWarning] == []


@pytest.fixture
def ordinary_folder() -> Iterator[Path]:
    """A folder, and the rights of an ordinary user while the test runs: root is refused nothing."""
    with tempfile.TemporaryDirectory() as name:
        was_root = os.geteuid() == 0
        if was_root:
            os.chown(name, 65534, 65534)
            os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            if was_root:
                os.seteuid(0)
            for folder, _, _ in os.walk(name):
                os.chmod(folder, 0o700)
