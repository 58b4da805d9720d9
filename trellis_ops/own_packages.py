"""That the packages `codegen`, `tuner` and `tuning_db` are this project's, as other packages have these names, too.

Python takes what it finds first on `sys.path`: a file or a folder beside a user's script, or another distribution.
This module imports nothing but the standard library, since it has to run before anything of the project is imported.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
"""The folder in which the packages of this project lie."""

NAMES = ("codegen", "trellis_ops", "tuner", "tuning_db")
"""The packages of this project."""

_MARK = b'DISTRIBUTION = "trellis-ops"'


def require_own(*names: str) -> None:
    """Refuse packages that are not this project's; `names` are looked up, not imported.

    Raises:
        ImportError: Python finds something else under one of these names; the message names the file, and what to do.
    """
    problems = [problem for problem in map(_problem, names) if problem is not None]
    if problems:
        raise ImportError("\n".join(problems))


def _problem(name: str) -> str | None:
    own = os.path.join(ROOT, name)
    try:
        spec = find_spec(name)
    except ValueError:
        return _shadowed(name, own, f"{sys.modules[name]!r}, a module without a file,")
    if spec is None:
        return None  # The import itself says so.
    # A folder without __init__.py has no origin.
    found = spec.origin or next(iter(spec.submodule_search_locations or ()), "")
    folder = os.path.dirname(found) if spec.origin else found
    if folder != own and os.path.realpath(folder) != os.path.realpath(own):
        return _shadowed(name, own, found)
    if not spec.origin:
        return _damaged(name, own, "is missing")
    return None if _is_marked(spec) else _damaged(name, own, "is another distribution's")


def _is_marked(spec: ModuleSpec) -> bool:
    read = getattr(spec.loader, "get_data", None)
    try:
        return read is None or _MARK in read(spec.origin) or not spec.has_location
    except OSError:
        return True  # Frozen into a program, where nobody can write over it.


def _shadowed(name: str, own: str, found: str) -> str:
    return (
        f"{found} shadows the package {name!r} of trellis-ops, which is in {own}: Python finds it first. Rename or "
        f"uninstall it, start Python in another folder, or put {ROOT} before its folder on sys.path"
    )


def _damaged(name: str, own: str, problem: str) -> str:
    path = os.path.join(own, "__init__.py")
    return (
        f"{path} {problem}: another distribution with a package {name!r} was installed or uninstalled in the same "
        "folder. Uninstall it, then run: pip install --force-reinstall --no-deps trellis-ops"
    )
