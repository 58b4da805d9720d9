"""Where all that can be made again lives, and what is said of a place that others may write to."""

from __future__ import annotations

import functools
import os
import tempfile
import warnings
from pathlib import Path

from codegen.interruption.whole_imports import whole_imports

VARIABLE = "TRELLIS_OPS_CACHE"
KEY_VARIABLE = "TRELLIS_OPS_CACHE_KEY_FILE"
"""Names the key of kernels that several users share, who may then write to one cache."""


class ExposedCacheWarning(UserWarning):
    """The cache lies where another user may write; the message names the place and what to do."""


def cache_folder() -> Path:
    """TRELLIS_OPS_CACHE, or the user's cache folder, or for a user without a home one in the temporary folder."""
    configured = os.environ.get(VARIABLE)
    if configured:
        return Path(configured)
    with whole_imports():
        import platformdirs

    try:
        found = platformdirs.user_cache_dir("trellis-ops")
    except RuntimeError:
        found = "~"
    # What is left of a home that nobody knows: neither HOME is set nor has the user an entry in the password file.
    if found.startswith("~"):
        return Path(tempfile.gettempdir()) / f"trellis-ops-{os.getuid()}"
    return Path(found)


def is_shared() -> bool:
    """Whether others are meant to write to the cache: what lies there is then believed for its seal only."""
    return bool(os.environ.get(KEY_VARIABLE))


@functools.cache
def say_exposed(exposed: str) -> None:
    """Warn, once for each place, that the cache is left alone; `exposed` is what `why_exposed` said."""
    warnings.warn(
        f"{exposed}, so nothing is read from or kept in the cache there, and every process compiles its own kernels: "
        f"make the place its owner's alone (chown, chmod go-w), or name another cache in {VARIABLE}",
        ExposedCacheWarning,
        stacklevel=2,
    )
