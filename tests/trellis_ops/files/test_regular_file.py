"""Reading never waits, replacing keeps the old until the new is whole, appending is all or nothing."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from codegen.errors import FileWriteError, IrregularFileError
from tests.trellis_ops.limited_files import limited_files
from trellis_ops.files import regular_file


def irregular(folder: Path) -> dict[str, Path]:
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to(folder / "pipe")
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket"))
    kinds = {"pipe": "a named pipe", "link": "a named pipe", "zero": "a device", "folder": "a folder"}
    return {**{kind: folder / name for name, kind in kinds.items()}, "a socket": folder / "socket"}


def test_what_is_no_regular_file_is_neither_read_nor_replaced(tmp_path: Path) -> None:
    for kind, path in irregular(tmp_path).items():
        for use in (
            regular_file.read_bytes,
            regular_file.open_to_append,
            lambda path: regular_file.write(path, "text"),
        ):
            with pytest.raises(IrregularFileError, match=f"{path.name} is {kind}, not a regular file"):
                use(path)
        assert not path.is_file()
    assert sorted(os.listdir(tmp_path)) == ["folder", "link", "pipe", "socket", "zero"]


@pytest.mark.parametrize("old", [b"old", None], ids=["replaced", "new"])
def test_a_write_that_fails_leaves_what_was_there(old: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)
    with limited_files(1000), pytest.raises(FileWriteError, match="file: File too large; what stood there is kept"):
        regular_file.write(path, bytes(2000))
    with pytest.raises(KeyboardInterrupt), regular_file.replaced(path) as unfinished:
        unfinished.write_bytes(b"half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == (["file"] if old else [])
    assert old is None or path.read_bytes() == old
    with pytest.raises(FileWriteError, match="No such file"):
        regular_file.write(tmp_path / "nowhere" / "file", b"new")


def test_a_link_and_permissions_outlive_what_they_belong_to(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    far, link = tmp_path / "far" / "file", tmp_path / "link"
    far.write_bytes(b"old")
    far.chmod(0o640)
    link.symlink_to(far)
    regular_file.write(link, "é")
    assert link.is_symlink() and far.read_bytes() == "é".encode() and far.stat().st_mode & 0o777 == 0o640
    regular_file.write(tmp_path / ("n" * 255), b"the longest name")
    assert sorted(os.listdir(tmp_path)) == ["far", "link", "n" * 255]


def test_leftovers_of_a_killed_writer_are_taken_away(tmp_path: Path) -> None:
    with regular_file.replaced(tmp_path / "file") as unfinished:
        # A process that is killed here leaves the folder as it is.
        (tmp_path / ".file.0123.unfinished").mkdir()
        unfinished.write_bytes(b"content")
    (tmp_path / ".file.0123.unfinished" / "half").write_bytes(b"half")
    (tmp_path / ".other.0123.unfinished").mkdir()
    regular_file.remove_unfinished(tmp_path / "file")
    assert sorted(os.listdir(tmp_path)) == [".other.0123.unfinished", "file"]


def test_what_is_appended_is_there_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with regular_file.open_to_append(path) as file:
        regular_file.append(file, path, b"first\n", sync=True)
        with limited_files(10), pytest.raises(FileWriteError, match="File too large"):
            regular_file.append(file, path, b"second\n")
        regular_file.append(file, path, b"third\n")
    assert path.read_bytes() == b"first\nthird\n"
