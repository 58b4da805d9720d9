"""A folder that is given away, and around it what nobody may touch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from codegen.maps import registry

OUTSIDE = Path("/etc/passwd")


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that a test may write to; the test fails if a file beside or above it appears, changes or goes."""
    folder = tmp_path / "given"
    for each in (folder, folder / "inner", tmp_path / "working", tmp_path / "a"):
        each.mkdir()
    for name in ("victim", "victim.json", "victim.jsonl", "victim.cu", "victim.cubin", "victim.py", "a/b", "x"):
        (tmp_path / name).write_text("mine")
    monkeypatch.chdir(tmp_path / "working")
    monkeypatch.setenv("TRELLIS_OPS_CACHE", str(folder / "inner" / "cache"))
    monkeypatch.setenv("TRELLIS_OPS_TUNING_DB", str(folder / "inner" / "records"))
    monkeypatch.setattr("tuning_db.warning._warned", set())
    monkeypatch.setattr(registry, "_DEFINED", dict(registry._DEFINED))
    before = _listing(tmp_path, folder)
    yield folder
    assert _listing(tmp_path, folder) == before


def _listing(root: Path, without: Path) -> dict[str, bytes | int]:
    """Every file and folder below `root`, with what it holds, but for those below one folder."""
    found: dict[str, bytes | int] = {str(OUTSIDE): OUTSIDE.stat().st_mtime_ns if OUTSIDE.exists() else 0}
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if Path(folder, name) != without]
        found |= {str(Path(folder, name)): b"" for name in folders}
        found |= {str(Path(folder, name)): Path(folder, name).read_bytes() for name in files}
    return found
