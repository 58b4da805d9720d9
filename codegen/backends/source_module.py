"""Generated sources as real Python modules: both compilers read them back through `inspect`."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from codegen.errors import CompileError
from codegen.render import Source


def module_of(source: Source, backend: str) -> ModuleType:
    """The module in `source.path`, imported once per process; its compiler must be importable already.

    Raises:
        CompileError: the source does not run as Python.
    """
    module_name = f"trellis_generated_{source.path.stem}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    specification = importlib.util.spec_from_file_location(module_name, source.path)
    if specification is None or specification.loader is None:
        raise CompileError(backend=backend, path=source.path, reason="not importable as a Python module")
    module = importlib.util.module_from_spec(specification)
    sys.modules[module_name] = module
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise CompileError(backend=backend, path=source.path, reason=f"{type(error).__name__}: {error}") from error
    return module
