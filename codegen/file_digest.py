"""What follows from the contents of files, each of which is read once in a process while it stays as it is."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")
Name = str | os.PathLike[str]


def of_content(path: Name, function: Callable[[bytes], Result]) -> Result:
    """`function`, a pure one, of the bytes of a file.

    Raises:
        OSError: the file cannot be read.
    """
    found = os.stat(path)
    # Copies and archives set the time of the last write; nothing sets that of the last change.
    version = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    result: Result = _of_version(os.fspath(path), version, function)
    return result


@functools.cache
def _of_version(path: str, version: tuple[int, ...], function: Callable[[bytes], Any]) -> Any:
    """Of a file as it is since `version`: most kernels of a process have most files in common."""
    with open(path, "rb", buffering=0) as file:
        return function(file.read())


def digest_of_file(path: Name) -> bytes:
    """SHA-256 of the content of a file; raises as `of_content`."""
    return of_content(path, _digest)


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def python_files(folder: Name) -> list[str]:
    """The Python files in a folder and in those below it, in the order of their paths part by part."""
    return sorted(_python_files(os.fspath(folder)), key=lambda path: path.split(os.sep))


def _python_files(folder: str) -> list[str]:
    # A first call waits for it, and pathlib takes three times as long.
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".py"):
                found.append(entry.path)
            elif entry.name != "__pycache__" and entry.is_dir(follow_symlinks=False):
                found += _python_files(entry.path)
    return found
