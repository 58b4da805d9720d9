"""Regular files: read without waiting, replaced as a whole, and longer by all of what is appended or none of it.

A named pipe in the place of a file would block whoever opens it, and a device in the place of a result would be
replaced, so that both are refused.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from codegen.errors import FileWriteError, IrregularFileError

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
    stat.S_IFSOCK: "a socket",
}

_NAME_KEPT = 48
"""Characters of a name that its unfinished folder repeats, so that the longest names leave room for the rest."""


def regular_status(path: Path) -> os.stat_result | None:
    """What the system says of the file at `path`, or None if nothing is there.

    Raises:
        IrregularFileError: it is no regular file.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    _check_regular(path, status)
    return status


def open_to_read(path: Path) -> BinaryIO:
    """The file at `path`, open for reading bytes.

    Raises:
        IrregularFileError: it is no regular file. OSError: it is not there, or may not be read.
    """
    return os.fdopen(_descriptor(path, os.O_RDONLY), "rb")


def read_bytes(path: Path) -> bytes:
    """All bytes of the file at `path`; raises as `open_to_read`."""
    with open_to_read(path) as file:
        return file.read()


def open_to_append(path: Path) -> FileIO:
    """The file at `path`, made if it is not there, open for `append`; raises as `open_to_read`."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    return FileIO(_descriptor(path, flags), "ab")


def append(file: FileIO, path: Path, data: bytes, *, sync: bool = False) -> None:
    """Add `data` to the end of a file from `open_to_append`; with `sync` it is on the disk when this returns.

    Raises:
        FileWriteError: it could not be written; the file is as long as it was.
    """
    size = os.fstat(file.fileno()).st_size
    left = memoryview(data)
    try:
        while left:
            left = left[file.write(left) :]
        if sync:
            os.fsync(file.fileno())
    except OSError as error:
        with contextlib.suppress(OSError):
            os.ftruncate(file.fileno(), size)
        raise FileWriteError(path=path, reason=error.strerror) from error


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a path to write to; the file made there takes the place of `path` when the block ends.

    `path` holds the old content or the new one, whole, whenever the machine stops, and keeps the old one if the block
    raises. A link is followed; the permissions of an old file are kept.

    Raises:
        IrregularFileError: `path` is there and no regular file. FileWriteError: the block, or what follows it, ended in
            an OSError.
    """
    target = Path(os.path.realpath(path))
    folder = target.with_name(f".{target.name[:_NAME_KEPT]}.{os.urandom(8).hex()}.unfinished")
    try:
        old = regular_status(path)
        try:
            # A folder, because a library may write beside the name that it is given.
            folder.mkdir(mode=0o700)
            yield folder / target.name
            _sync(folder / target.name)
            if old is not None:
                (folder / target.name).chmod(stat.S_IMODE(old.st_mode))
            (folder / target.name).replace(target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        _sync_folder(target.parent)
    except (IrregularFileError, FileWriteError):
        raise
    except OSError as error:
        raise FileWriteError(path=path, reason=error.strerror or error) from error


def write(path: Path, content: str | bytes) -> None:
    """Put `content`, text as UTF-8, in the place of `path`; raises as `replaced`."""
    with replaced(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


def remove_unfinished(path: Path) -> None:
    """Take away what writers of `path` left that were killed; only for whoever alone may write it."""
    for leftover in path.parent.glob(f".{path.name[:_NAME_KEPT]}.*.unfinished"):
        shutil.rmtree(leftover, ignore_errors=True)


def _descriptor(path: Path, flags: int) -> int:
    # To open some devices is to act on them; to open a pipe is to wait, which the flag forbids where one has just come.
    regular_status(path)
    binary = getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | binary, 0o666)
    try:
        _check_regular(path, os.fstat(descriptor))
    except IrregularFileError:
        os.close(descriptor)
        raise
    return descriptor


def _check_regular(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise IrregularFileError(path=path, kind=_KINDS.get(stat.S_IFMT(status.st_mode), "something else"))


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
