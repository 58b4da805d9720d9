"""Changing a folder of device files: one writer at a time, each file replaced as a whole, nothing overwritten unread.

The lock covers the whole folder, so a temporary file seen under it is always the leftover of a writer that died.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuning_db.errors import DatabaseBusyError, DatabaseWriteError, TuningDatabaseError
from tuning_db.regular_file import why_foreign

LOCK_NAME = ".lock"
LOCK_SECONDS = 60.0
_TEMPORARY_SUFFIX = ".tmp"


@contextmanager
def locked(folder: Path, *, own: bool = False, tidy: bool = False) -> Iterator[None]:
    """Hold the folder's lock, making the folder if it is missing and clearing what dead writers left.

    Args:
        folder: that is changed.
        own: make it for this user alone, and refuse it if it is another's.
        tidy: remove the lock's file in the end, as from a folder under version control.

    Raises:
        DatabaseBusyError: another process held the lock for `LOCK_SECONDS`.
        DatabaseWriteError: the folder cannot be made or locked, or the work under the lock ended in an OSError.
    """
    import filelock  # 10 to 20 ms that reading must not pay

    try:
        folder.mkdir(mode=0o700 if own else 0o777, parents=True, exist_ok=True)
        if own and (reason := why_foreign(os.stat(folder))):
            raise PermissionError(reason)
        with filelock.FileLock(folder / LOCK_NAME).acquire(timeout=LOCK_SECONDS, poll_interval=0.01):
            _remove_leftovers(folder)
            try:
                yield
            finally:
                if tidy:
                    # Who waits with this file open finds it removed once it is locked, and opens the next.
                    (folder / LOCK_NAME).unlink(missing_ok=True)
    except filelock.Timeout as error:
        raise DatabaseBusyError(folder=folder, seconds=LOCK_SECONDS) from error
    except TuningDatabaseError:
        raise
    except OSError as error:
        raise DatabaseWriteError(folder=folder, reason=error) from error


def write_temporary(path: Path, data: bytes) -> Path:
    """Write `data` safely to disk beside `path`; `os.replace` of the result onto `path` makes it current."""
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}{_TEMPORARY_SUFFIX}")
    try:
        _write_new(temporary, data)
    except BaseException:
        temporary.unlink(missing_ok=True)  # Half a file helps nobody, and a full disk least of all.
        raise
    return temporary


def move_aside(path: Path) -> Path:
    """Rename a file (or whatever stands in its place) to the first free `<name>.unreadable-<n>`."""
    aside = _free_name(path)
    path.rename(aside)
    return aside


def copy_aside(path: Path, data: bytes) -> Path:
    """Keep `data`, the content of `path`, as the first free `<name>.unreadable-<n>`."""
    aside = _free_name(path)
    _write_new(aside, data)
    return aside


def _free_name(path: Path) -> Path:
    number = 1
    while os.path.lexists(path.with_name(f"{path.name}.unreadable-{number}")):
        number += 1
    return path.with_name(f"{path.name}.unreadable-{number}")


def _write_new(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _remove_leftovers(folder: Path) -> None:
    for leftover in folder.glob(f".*.json.*{_TEMPORARY_SUFFIX}"):
        leftover.unlink(missing_ok=True)
