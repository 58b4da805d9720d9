"""The one way the database complains about what it reads: a warning per file and process."""

from __future__ import annotations

import threading
import warnings

from tuning_db.records.field_rules import one_line

_warned: set[str] = set()
_lock = threading.Lock()


class TuningDatabaseWarning(UserWarning):
    """Something in the tuning database could not be used; the message names the file and what to do."""


def warn_once(subject: str, text: str) -> None:
    """Warn with `text`, unless this process was already warned about `subject` (a file path or a device key).

    The text is escaped to one printable line: names of files that others chose are in it.
    """
    with _lock:
        if subject in _warned:
            return
        _warned.add(subject)
    warnings.warn(one_line(text), TuningDatabaseWarning, stacklevel=3)
