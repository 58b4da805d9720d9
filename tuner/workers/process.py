"""One worker process, seen from the tuner: started, given a task, watched, stopped with all that it started."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codegen import render
from codegen.schedules.registry import SCHEDULES
from codegen.schedules.schedule import Schedule
from tuner.processes.own_process import own_process
from tuner.studies.storage_variable import STORAGE_VARIABLE
from tuner.workers.limits import Limits, peak_bytes
from tuner.workers.messages import Done, Failed, GoOn, Phase, Ready, Setup, Task
from tuner.workers.worker_process import PREFIX
from tuning_db import Outcome, shortened

LONGEST_LOOK = 0.5
"""Seconds that one look at a worker adds to its clock at most: a machine that sleeps is no fault of a candidate."""

START_SECONDS = 120.0
"""A worker that is not ready after this long never will be."""

_GIVEN = "given a task"
_SAID = 300
_LEAVE_SECONDS = 5.0
_MOST_OF_IT = 0.8
_FAULTS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS)


@dataclass(frozen=True)
class End:
    """How a worker ended that should not have.

    Attributes:
        outcome: what that makes of its candidate.
        reason: the same in a sentence.
        innocent: whether it ended before it began with its task, which can be given to another one.
    """

    outcome: Outcome
    reason: str
    innocent: bool = False


class WorkerProcess:
    """A process of its own session, so that it and all that it starts can be stopped at once.

    Args:
        limits: of each task.
        environment: variables that it sees where the tuner's own environment does not set them.

    Attributes:
        connection: becomes readable when it has something to say, or has ended.
        phase: what it is busy with; "starting" until it is ready.
    """

    def __init__(self, limits: Limits, environment: Mapping[str, str] | None = None) -> None:
        self._made_for = _kernels_here()
        self.phase = Phase("starting")
        self._limits = limits
        self._paused = False
        self._ready = Ready(0, 0)
        self._elapsed, self._looked = 0.0, time.monotonic()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self.connection, other = multiprocessing.Pipe()
        with other:
            self._process = subprocess.Popen(
                own_process("tuner.workers.worker_process", str(other.fileno())),
                pass_fds=(other.fileno(),),
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                env={**(environment or {}), **_for_workers(os.environ)},
            )
        with contextlib.suppress(OSError):  # It has ended already, which the next look shows.
            self.connection.send(Setup(os.getpid(), *self._made_for, limits))

    @property
    def pid(self) -> int:
        """Its process id, and that of its process group."""
        return self._process.pid

    @property
    def is_current(self) -> bool:
        """Whether it makes the kernels that this process would: of these templates, and of every backend."""
        return self._made_for == _kernels_here()

    @property
    def idle(self) -> bool:
        """Whether it waits for a task."""
        return self.phase.name == "idle"

    def give(self, name: str, *arguments: Any) -> None:
        """Start a task of `tuner.workers.worker.TASKS`; only for one that is idle."""
        environment = {name: value for name, value in _for_workers(os.environ).items() if name.startswith(PREFIX)}
        self._enter(Phase(_GIVEN))
        with contextlib.suppress(OSError):
            self.connection.send(Task(name, arguments, environment))

    def hear(self) -> Done | Failed | Phase | End | None:
        """What it said; None if nothing. An `End` says that it is gone, as it did not end on its own account."""
        try:
            if not self.connection.poll():
                return None
            message = self.connection.recv()
        except (EOFError, OSError):
            return self._ended()
        if isinstance(message, Ready):
            self._ready = message
            self._enter(Phase("idle"))
            return None
        if isinstance(message, (Done, Failed)):
            self._enter(Phase("idle"))
        elif isinstance(message, Phase):
            self._enter(message)
        assert isinstance(message, (Done, Failed, Phase))
        return message

    def go_on(self) -> None:
        """Let it take times."""
        with contextlib.suppress(OSError):
            self.connection.send(GoOn())

    def overdue(self) -> End | None:
        """Look at the clock; if the phase lasts too long, stop it, and say so."""
        now = time.monotonic()
        if not self._paused and not self.idle:
            self._elapsed += min(now - self._looked, LONGEST_LOOK)
        self._looked = now
        limit = START_SECONDS if self.phase.name == "starting" else self._limits.seconds(self.phase.name)
        limit *= self.phase.share
        if self._elapsed <= limit:
            return None
        self.stop()
        return End(Outcome.timeout, f"{self.phase.name} took longer than {limit:g} s; it was stopped")

    def pause(self) -> None:
        """Stop its work for a while, so that it disturbs no measurement; its clock stops too."""
        if not self._paused and self._signal(signal.SIGSTOP):
            self._paused = True

    def resume(self) -> None:
        """Let it work on."""
        if self._paused:
            self._signal(signal.SIGCONT)
            self._paused, self._looked = False, time.monotonic()

    def stop(self) -> None:
        """Kill it and all that it started, and wait for it."""
        self._signal(signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            self._process.wait()
        self.connection.close()
        self._log.close()

    def _ended(self) -> End:
        # Not Popen.wait, which does not say how much memory the process had.
        status, usage = self._reaped()
        code = self._process.returncode = os.waitstatus_to_exitcode(status)
        self._signal(signal.SIGKILL)
        said = self._last_words()
        self.connection.close()
        self._log.close()
        peak = peak_bytes(usage)
        taken = peak - self._ready.resident_bytes if peak > self._ready.peak_bytes else 0
        while_ = f"while {self.phase.name}{said}"
        if -code in _FAULTS or code >= 0:
            name = f"crashed with {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            if taken >= _MOST_OF_IT * self._limits.memory_bytes:
                limit = f"{taken / 2**20:.0f} of the {self._limits.memory_bytes / 2**20:.0f} MiB it may allocate"
                return End(Outcome.out_of_memory, f"{name} after it had taken {limit}, {while_}")
            return End(Outcome.crashed, f"{name} {while_}")
        by_whom = "by hand, or by the system for want of memory"
        innocent = self.phase.name == _GIVEN
        return End(
            Outcome.killed, f"its worker was ended with {signal.Signals(-code).name}, {by_whom}, {while_}", innocent
        )

    def _reaped(self) -> tuple[int, resource.struct_rusage]:
        """Its exit status and what it took; a process that lives on without its pipe is killed after a while."""
        deadline = time.monotonic() + _LEAVE_SECONDS
        while time.monotonic() < deadline:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                return status, usage
            time.sleep(0.01)
        self._signal(signal.SIGKILL)
        return os.wait4(self.pid, 0)[1:]

    def _last_words(self) -> str:
        size = os.fstat(self._log.fileno()).st_size
        text = os.pread(self._log.fileno(), 4 * _SAID, max(0, size - 4 * _SAID)).decode(errors="replace")
        words = " ".join(text.split())[-_SAID:]
        return f"; it said: {shortened(words, _SAID)}" if words else ""

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self._elapsed, self._looked = 0.0, time.monotonic()

    def _signal(self, number: signal.Signals) -> bool:
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return False
        return True


def _kernels_here() -> tuple[Path, tuple[type[Schedule], ...]]:
    """The templates and the backends of this process."""
    return render.TEMPLATES, tuple(SCHEDULES.values())


def _for_workers(environment: Mapping[str, str]) -> dict[str, str]:
    # No worker opens a study, and what compilers start need not know its password.
    return {name: value for name, value in environment.items() if name != STORAGE_VARIABLE}
