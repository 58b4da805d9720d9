"""A disk that is full: the record that was there stays, nothing half-written is left, and the error says why."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tuning_db.examples import record
from tuning_db import DatabaseWriteError, Store

DISK_BYTES = 64 * 1024


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, with room for few records."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(mounted)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(command, check=False).returncode != 0:
        pytest.skip("only root may mount a small disk, and not everywhere")
    try:
        yield mounted
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def check_that_nothing_was_lost(store: Store, folder: Path) -> None:
    assert [(each.spec, each.trials) for each in store.records()] == [("spec-a", 1)]
    assert sorted(os.listdir(folder)) == [".lock", "cpu-x.json"]


def test_a_full_disk_costs_the_new_record_only(small_disk: Path):
    folder = small_disk / "db"
    store = Store(folder, small_disk / "shipped")
    store.commit(record(trials=1))
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space left"), open(filler, "wb", buffering=0) as file:
        while True:
            file.write(bytes(512))
    with pytest.raises(DatabaseWriteError, match="No space left"):
        store.commit(record(trials=2))
    check_that_nothing_was_lost(store, folder)
    filler.unlink()
    assert store.commit(record(trials=2))
    assert [each.trials for each in store.records()] == [2]


def test_on_a_full_disk_records_go_to_the_fallback(small_disk: Path, tmp_path: Path):
    store = Store(small_disk / "db", small_disk / "shipped", tmp_path / "fallback")
    store.commit(record(trials=1, created="2025-01-31T12:00:00Z"))
    (small_disk / "filler").write_bytes(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize))
    with pytest.warns(match="No space left.*kept in"):
        store.commit(record(trials=2, created="2025-02-01T12:00:00Z"))
    assert [each.trials for each in store.records()] == [2]


def test_a_file_that_may_not_grow_costs_the_new_record_only(tmp_path: Path):
    folder = tmp_path / "db"
    store = Store(folder, tmp_path / "shipped")
    store.commit(record(trials=1))
    size = (folder / "cpu-x.json").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, before[1]))
    try:
        with pytest.raises(DatabaseWriteError, match="File too large"):
            store.commit(record(trials=2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    check_that_nothing_was_lost(store, folder)
