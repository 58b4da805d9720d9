"""Reading a file that anyone may have put there: never one that would hang its reader, nor one without an end."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec

# msgspec's own errors are ValueErrors from 0.21 only; invalid UTF-8 and deep nesting surface as the other two.
UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)
"""What msgspec raises for bytes that are not what was expected."""


def read_regular(path: Path, most: int, *, own: bool = False) -> bytes:
    """The first `most + 1` bytes of the regular file at `path`, so that more than `most` are one too many.

    Args:
        path: a link is followed.
        most: bytes.
        own: refuse a file that `why_foreign` speaks against.

    Raises:
        OSError: it cannot be read, is a pipe, a device or a folder, or is refused.
        ValueError: no name of a file.
    """
    # O_NONBLOCK: a named pipe in place of the file must not hang the reader.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a regular file")
        if own and (reason := why_foreign(status)):
            raise PermissionError(reason)
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(most + 1)
    finally:
        os.close(descriptor)


def why_foreign(status: os.stat_result) -> str | None:
    """Why someone other than this user and root may have written a file or folder; None if nobody may.

    A group is trusted, since on many machines every user has one of their own.
    """
    if not hasattr(os, "geteuid"):
        return None
    if status.st_uid not in (0, os.geteuid()):
        return f"it belongs to user {status.st_uid}, not to this one"
    if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        return "every user may write it"
    return None
