"""The one way the database complains about what it reads: a warning per file and process."""

from __future__ import annotations

import threading
import warnings

_warned: set[str] = set()
_lock = threading.Lock()


class TuningDatabaseWarning(UserWarning):
    """Something in the tuning database could not be used; the message names the file and what to do."""


def warn_once(subject: str, text: str) -> None:
    """Warn with `text`, unless this process was already warned about `subject` (a file path or a device key)."""
    with _lock:
        if subject in _warned:
            return
        _warned.add(subject)
    warnings.warn(text, TuningDatabaseWarning, stacklevel=3)
