"""The key that a team's compiled kernels are sealed with: a file of at least 32 bytes, which nobody else may read."""

from __future__ import annotations

import os
from pathlib import Path

from codegen.cache.folder import KEY_VARIABLE
from codegen.cache.ownership import read_own, readable_by_everyone, why_exposed
from codegen.errors import TrellisError

_LEAST_BYTES, _MOST_BYTES = 32, 4096


class FaultyKeyError(TrellisError, OSError):
    """A file that cannot serve as the key of the kernel cache."""

    message = (
        f"{KEY_VARIABLE}={{path}} names no key: {{reason}}; compiled kernels are neither read nor kept. A key has "
        f"{_LEAST_BYTES} bytes or more, as `head -c 32 /dev/urandom` makes them, and only its holders may read it"
    )


def cache_key() -> bytes | None:
    """The key; None if no file is named.

    Raises:
        FaultyKeyError: the file cannot be read, is too short, or others may read or replace it.
    """
    named = os.environ.get(KEY_VARIABLE)
    if not named:
        return None
    path = Path(named)
    try:
        key = read_own(path, _MOST_BYTES)
        everyone = readable_by_everyone(path)
    except OSError as error:
        raise FaultyKeyError(path=path, reason=error.strerror or error) from error
    reason = why_exposed(path.parent)
    if reason is None and everyone:
        reason = "everyone may read it"
    if reason is None and len(key) < _LEAST_BYTES:
        reason = f"it has {len(key)} bytes"
    if reason is not None:
        raise FaultyKeyError(path=path, reason=reason)
    return key
