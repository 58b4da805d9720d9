"""Imports that neither a fork nor Ctrl-C may come between: importing a compiler takes seconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from codegen.interruption.unforked import unforked
from codegen.interruption.uninterrupted import uninterrupted


@contextmanager
def whole_imports() -> Iterator[None]:
    """Within it this thread imports: Ctrl-C is answered at the end, and a fork by any other thread waits."""
    # In this order, so that Ctrl-C is answered while another thread's compile is waited for.
    with unforked(), uninterrupted():
        yield
