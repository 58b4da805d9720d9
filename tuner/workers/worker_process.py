"""The program that a worker process runs: `python -m tuner.workers.worker_process FD`, where FD is its end of a pipe.

A worker does one task after another until the tuner closes the pipe. It dies with the tuner, however that ends, also
while a candidate never returns.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import traceback
from multiprocessing.connection import Connection

from codegen import render
from codegen.errors import TrellisError
from codegen.schedules.registry import register
from tuner.workers.limits import limit_memory, peak_bytes, resident_bytes
from tuner.workers.messages import Done, Failed, GoOn, Phase, Ready, Setup, Task
from tuner.workers.worker import TASKS

PREFIX = "TRELLIS_OPS_"
"""Environment variables with this prefix are the tuner's at the time of each task."""

_PR_SET_PDEATHSIG = 1


def main(descriptor: int) -> None:
    """Serve the tuner at the other end of the pipe `descriptor`."""
    with Connection(descriptor) as tuner:
        setup: Setup = tuner.recv()
        _die_with(setup.parent)
        render.TEMPLATES = setup.templates
        for kind in setup.backends:
            register(kind)
        limit_memory(setup.limits.memory_bytes)
        tuner.send(Ready(resident_bytes(), peak_bytes(resource.getrusage(resource.RUSAGE_SELF))))
        while True:
            try:
                task: Task = tuner.recv()
            except EOFError:
                return
            tuner.send(_done(task, tuner))


def _done(task: Task, tuner: Connection) -> Done | Failed:
    _take_over(task.environment)

    def enter(phase: Phase) -> None:
        tuner.send(phase)
        if phase.quiet:
            assert isinstance(tuner.recv(), GoOn)

    try:
        return Done(TASKS[task.name](enter, *task.arguments))
    except Exception as error:
        return Failed(traceback.format_exc(), error if isinstance(error, TrellisError) else None)


def _take_over(environment: dict[str, str]) -> None:
    for name in [name for name in os.environ if name.startswith(PREFIX) and name not in environment]:
        del os.environ[name]
    os.environ.update(environment)


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # It ended before that was said.
        os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
