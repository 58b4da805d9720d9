"""Generated sources as real Python modules: both compilers read them back through `inspect`.

What runs is the text that was rendered, never what a file says: neither the source's own, which another process may
have written, nor bytecode that lies beside it, which Python would run without a look at the source.
"""

from __future__ import annotations

import linecache
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

from codegen.errors import CompileError
from codegen.render import Source

_whole: dict[str, ModuleType] = {}
"""The modules that ran to their end; one that was interrupted is made again."""


def module_of(source: Source, backend: str) -> ModuleType:
    """The module of `source`, run once per process; its compiler must be importable already.

    Raises:
        CompileError: the source does not run as Python.
    """
    name = f"trellis_generated_{source.path.stem}"
    if name in _whole:
        return _whole[name]
    path = str(source.path)
    module = ModuleType(name)
    module.__file__, module.__spec__ = path, ModuleSpec(name, None, origin=path)
    # `inspect` finds the module here, and its lines there; with no time of change they are not looked for in the file.
    linecache.cache[path] = (len(source.text), None, source.text.splitlines(keepends=True), path)
    sys.modules[name] = module
    try:
        exec(compile(source.text, path, "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:
        sys.modules.pop(name, None)
        if not isinstance(error, Exception):
            raise
        raise CompileError(backend=backend, path=source.path, reason=f"{type(error).__name__}: {error}") from error
    _whole[name] = module
    return module
