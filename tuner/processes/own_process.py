"""The command of another Python process that runs a module of this project."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from trellis_ops.own_packages import NAMES, ROOT

# `python -m` would look into the folder where the process is started first, which may have a module of any name.
_PROGRAM = """\
import sys
sys.path[:] = {path!a}
import runpy
from importlib.machinery import PathFinder
class Own:
    def find_spec(name, path=None, target=None):
        return PathFinder.find_spec(name, [{root!a}], target) if name in {packages} else None
sys.meta_path.insert(0, Own)
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


def own_process(module: str, *arguments: str) -> Sequence[str]:
    """What starts `python -m module arguments` such that it imports what this process would.

    The packages of this project come from where this process has them, others from this process's `sys.path`; the
    folder in which it is started is not searched, unless this process searches it, too.
    """
    path = [each for each in sys.path if isinstance(each, str)]
    program = _PROGRAM.format(path=path, root=ROOT, packages=NAMES)
    return [sys.executable, "-c", program, module, *arguments]
