"""One process at a time works in a folder, and whoever comes second is told which one does."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path

from trellis_ops.files import regular_file
from trellis_ops.lm.train.errors import FolderInUseError


@contextlib.contextmanager
def exclusive(folder: Path, work: str) -> Iterator[None]:
    """Hold `folder`, made if it is not there, for `work`; the system lets go when the process ends, however it does.

    Args:
        folder: where files are written.
        work: names the lock file, `.<work>.lock`; other work may go on in the same folder.

    Raises:
        FolderInUseError: another process holds it; the error names that one.
    """
    import filelock

    folder.mkdir(parents=True, exist_ok=True)
    holder = folder / f".{work}.holder"
    lock = filelock.FileLock(folder / f".{work}.lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise FolderInUseError(folder=folder, work=work, holder=_said(holder)) from error
    except NotImplementedError:
        text = f"{folder} is on a file system without locks; see to it yourself that no other {work} writes there"
        warnings.warn(text, stacklevel=3)
    try:
        regular_file.write(holder, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}) + "\n")
        yield
    finally:
        with contextlib.suppress(OSError):
            holder.unlink(missing_ok=True)
        lock.release()


def _said(holder: Path) -> str:
    """Who holds a folder; the lock alone decides whether anybody does."""
    try:
        content = json.loads(regular_file.read_bytes(holder))
        return f"process {int(content['pid'])} on {str(content['host'])!r}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process, which has not said its number"
