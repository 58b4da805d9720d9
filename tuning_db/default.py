"""Where the records of this user lie."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from tuning_db.errors import CACHE_VARIABLE, FOLDER_VARIABLE
from tuning_db.store import Store


def default_store() -> Store:
    """The store of this user: `TRELLIS_OPS_TUNING_DB`, or the user's data folder, over the package's winners.

    The fallback lies in the cache folder, one for each user folder, so that none serves in place of another. A user
    without a home has only what these variables name.
    """
    import platformdirs  # 10 ms that `import trellis_ops` need not pay

    named, cache = os.environ.get(FOLDER_VARIABLE), os.environ.get(CACHE_VARIABLE)
    if named:
        user = _absolute(os.path.expanduser(named))
    else:
        data = _in_home(platformdirs.user_data_dir)
        if data is None:
            return Store(None)
        user = Path(data) / "tuning_db"
    cache = cache or _in_home(platformdirs.user_cache_dir)
    mark = hashlib.sha256(os.fsencode(user)).hexdigest()[:12]
    return Store(user, fallback=None if cache is None else _absolute(cache) / "tuning_db" / mark)


def _in_home(folder: Callable[..., str]) -> str | None:
    """The folder that platformdirs names; None for a user who has neither HOME nor an entry in the password file."""
    try:
        found = folder("trellis-ops", appauthor=False)
    except RuntimeError:
        return None
    return None if found.startswith("~") else found


def _absolute(folder: str) -> Path:
    try:
        return Path(os.path.abspath(folder))
    except FileNotFoundError:
        return Path(folder)  # the working directory is gone: reading will miss, and writing will say why
