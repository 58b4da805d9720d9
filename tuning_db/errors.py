"""One class per failure of the tuning database, with the message on the class."""

from __future__ import annotations

from typing import ClassVar

FOLDER_VARIABLE = "TRELLIS_OPS_TUNING_DB"
"""Environment variable that names another folder for the user layer."""

CACHE_VARIABLE = "TRELLIS_OPS_CACHE"
"""Environment variable that names another cache folder, where records go while the user layer cannot be written."""


class TuningDatabaseError(Exception):
    """Base of every error that the tuning database raises on purpose; details fill the message and stay readable."""

    message: ClassVar[str] = "{detail}"

    def __init__(self, **details: object) -> None:
        super().__init__(self.message.format(**details))
        self.details = details

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.details))


def _rebuild(kind: type[TuningDatabaseError], details: dict[str, object]) -> TuningDatabaseError:
    return kind(**details)


class RecordError(TuningDatabaseError, ValueError):
    """A record or recommendation with a field outside its range."""

    message = "{field}={value!r} is not valid; expected {expected}"


class DatabaseWriteError(TuningDatabaseError, OSError):
    """A folder of the tuning database that cannot be written."""

    message = (
        "cannot write the tuning database in {folder}: {reason}; make the folder writable, "
        f"or name another one in the environment variable {FOLDER_VARIABLE}"
    )


class DatabaseBusyError(TuningDatabaseError, TimeoutError):
    """A folder of the tuning database that another process kept locked for too long."""

    message = "the tuning database in {folder} stayed locked by another process for {seconds} s; end it, then try again"


class DatabaseFullError(TuningDatabaseError, OSError):
    """A device file that would grow past what is read back."""

    message = (
        "{path} would pass its limit ({reason}); move it away to start a new one, its winners of "
        "older template digests are no longer used"
    )
