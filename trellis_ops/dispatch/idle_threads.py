"""How long idle threads of PyTorch spin while this project trains."""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path

_MODULES = ("trellis_ops.lm.train", "trellis_ops.lm.recall")
_SCRIPTS = ("trellis-train",)


def shorten_spinning() -> None:
    """Set `GOMP_SPINCOUNT` to 200 in a process that was started to train, unless its user has set it.

    Threads that spin take the cores that a compiled kernel needs next. It has to be called before torch is imported,
    which reads the variable at that moment; in other processes the choice is their user's.
    """
    if _is_started_to_train():
        os.environ.setdefault("GOMP_SPINCOUNT", "200")


def _is_started_to_train() -> bool:
    # Neither `sys.argv[0]` nor `__main__` names a module of -m before its package is imported.
    by_module = any(flag == "-m" and name in _MODULES for flag, name in itertools.pairwise(sys.orig_argv))
    return by_module or Path(next(iter(sys.argv), "")).stem in _SCRIPTS
