"""Python programs that find torch and transformers imported: each runs in a fork of one process that did it once.

The project itself is imported by each program, with the environment, the folder and the arguments that it is given.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
MODULES = ("torch", "transformers.modeling_utils", "transformers.trainer")


class Imported:
    """The process that is forked."""

    def __init__(self, server: subprocess.Popen[str]) -> None:
        self._server = server

    def run(
        self, arguments: Sequence[str], cwd: Path, environment: Mapping[str, str], stdin: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run what `python ARGUMENTS` runs (-c CODE, -m MODULE ..., or FILE ...), without warnings, and wait for it."""
        assert self._server.stdin is not None and self._server.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            written = [Path(folder, name) for name in ("stdout", "stderr")]
            job = [
                list(arguments),
                str(cwd),
                dict(environment),
                [str(each) for each in (stdin or os.devnull, *written)],
            ]
            self._server.stdin.write(json.dumps(job) + "\n")
            self._server.stdin.flush()
            status = int(self._server.stdout.readline())
            return subprocess.CompletedProcess(arguments, status, *(each.read_text() for each in written))


@contextmanager
def imported() -> Iterator[Imported]:
    """The process, for as long as it is needed."""
    command = [sys.executable, "-W", "ignore", "-m", __name__]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        yield Imported(server)


def main() -> None:
    """Import, then run what each line of the standard input asks for, and answer with its exit status."""
    for name in MODULES:
        importlib.import_module(name)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            return _become(*json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _become(arguments: list[str], cwd: str, environment: dict[str, str], streams: list[str]) -> None:
    for number, path in enumerate(streams):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT if number else os.O_RDONLY), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    kind, *rest = arguments
    if kind == "-m":
        sys.path[0], sys.argv = cwd, rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        code, *others = rest
        sys.path[0], sys.argv = cwd, [kind, *others]
        sys.modules["__main__"] = program = ModuleType("__main__")
        exec(compile(code, "<string>", "exec"), program.__dict__)
    else:
        sys.path[0], sys.argv = str(Path(cwd, kind).parent), arguments
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    main()
