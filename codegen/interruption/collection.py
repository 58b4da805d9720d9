"""Garbage collection, put off while much is made that stays."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Iterator[None]:
    """Collect no garbage in the block: imports make enough objects to start collections that walk over all of torch.

    One takes 70 ms, as long as the rest of importing this package, or of a first call that finds its kernel kept.
    """
    enabled = gc.isenabled()
    try:
        gc.disable()
        yield
    finally:
        if enabled:
            gc.enable()
