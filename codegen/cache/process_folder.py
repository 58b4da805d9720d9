"""A folder of this process alone, for what must be a file and cannot be kept."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path


@functools.cache
def process_folder() -> Path:
    """The folder, made at the first call; it goes when the process that made it ends, not when a fork of it does."""
    folder = tempfile.mkdtemp(prefix="trellis-ops-")
    atexit.register(_remove, folder, os.getpid())
    return Path(folder)


def _remove(folder: str, maker: int) -> None:
    if os.getpid() == maker:
        shutil.rmtree(folder, ignore_errors=True)
