from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tuning_db.examples import ASKED, record
from tuning_db import DatabaseBusyError, Store, writing

ROOT = Path(__file__).parents[2]
WRITERS, RECORDS = 5, 12


def _write(folder: str, writer: int, barrier: object) -> None:
    store = Store(Path(folder), Path(folder) / "shipped")
    barrier.wait()  # type: ignore[attr-defined]
    for number in range(RECORDS):
        store.commit(record(spec=f"writer {writer} record {number}"))


def test_processes_that_commit_at_once_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(WRITERS + 1)
    writers = [context.Process(target=_write, args=(str(tmp_path), number, barrier)) for number in range(WRITERS)]
    for writer in writers:
        writer.start()
    reader, seen = Store(tmp_path, tmp_path / "shipped"), 0
    barrier.wait()
    while any(writer.is_alive() for writer in writers):
        now = len(reader.records("cpu-x"))
        assert now >= seen, "a reader never sees records vanish"
        seen = now
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * WRITERS
    expected = {f"writer {writer} record {number}" for writer in range(WRITERS) for number in range(RECORDS)}
    assert {each.spec for each in reader.records("cpu-x")} == expected
    assert sorted(os.listdir(tmp_path)) == [".lock", "cpu-x.json"]


def _ship(folder: str, writer: int, barrier: object) -> None:
    store = Store(None, Path(folder))
    barrier.wait()  # type: ignore[attr-defined]
    for number in range(RECORDS):
        store.ship("cpu-x", [record(spec=f"writer {writer} record {number}")])


def test_processes_that_ship_at_once_lose_nothing_and_leave_no_lock(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    writers = [context.Process(target=_ship, args=(str(tmp_path), number, barrier)) for number in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 3
    expected = {f"writer {writer} record {number}" for writer in range(3) for number in range(RECORDS)}
    assert {each.spec for each in Store(None, tmp_path).records("cpu-x")} == expected
    assert os.listdir(tmp_path) == ["cpu-x.json"]


DIE_BEFORE_REPLACE = """
import os, signal, sys
from pathlib import Path
from tests.tuning_db.examples import record
from tuning_db import Store
os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
Store(Path(sys.argv[1]), Path(sys.argv[1]) / "shipped").commit(record(spec="lost"))
"""


def test_a_writer_killed_before_the_replace_leaves_the_old_file_and_a_leftover_that_is_cleared(tmp_path: Path) -> None:
    store = Store(tmp_path, tmp_path / "shipped")
    store.commit(record())
    killed = subprocess.run([sys.executable, "-c", DIE_BEFORE_REPLACE, str(tmp_path)], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len([*tmp_path.glob(".*.tmp")]) == 1, "the temporary file was left behind"
    assert store.records() == (record(),)
    assert store.devices() == ("cpu-x",)
    store.commit(record(spec="next"))
    assert [each.spec for each in store.records()] == ["next", "spec-a"]
    assert sorted(os.listdir(tmp_path)) == [".lock", "cpu-x.json"]


def test_a_failed_replace_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path, tmp_path / "shipped")
    store.commit(record())

    def refuse(*paths: object) -> None:
        raise OSError("disk on fire")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(OSError, match="disk on fire"):
            store.commit(record(trials=9))
    assert store.records() == (record(),)
    assert sorted(os.listdir(tmp_path)) == [".lock", "cpu-x.json"]


def test_a_lock_that_is_never_freed_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "LOCK_SECONDS", 0.05)
    store = Store(tmp_path, tmp_path / "shipped")
    with writing.locked(tmp_path), pytest.raises(DatabaseBusyError, match="locked by another process"):
        store.commit(record())
    store.commit(record())
    assert store.lookup(**ASKED) is not None
