"""What had a part in a measurement."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from codegen.backends import backend as compiler


def toolchain(backend: str) -> dict[str, str]:
    """Versions of Python, torch, Optuna if it is there, and of the backend's compilers."""
    packages = {}
    for name in ("torch", "optuna"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue  # A GPU run on a machine without Optuna tunes without it.
    return {"python": platform.python_version(), **packages, **compiler(backend).toolchain()}
