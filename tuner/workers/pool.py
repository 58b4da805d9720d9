"""The worker processes of one run: some that compile ahead, one that checks and times, one for what is compared.

The tuner itself never runs a kernel, and has no context on a GPU. Compiled kernels reach the measuring worker through
the disk cache. While it takes times on a CPU, the compiling workers are stopped, as they would take its cores; a GPU is
not disturbed by them. A worker that ends, or takes too long, costs its candidate and nothing else: another one takes
its place. So does a worker whose candidate was wrong, since that may have written anywhere.
"""

from __future__ import annotations

import math
import multiprocessing.connection
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, TypeVar

from codegen.device import Device, cpu
from codegen.spec import Spec
from tuner.errors import WorkerError
from tuner.measure.ceiling import Ceiling
from tuner.measure.side_by_side import SideBySide
from tuner.measure.timed import Timing
from tuner.processes.interruption import stop_if_interrupted
from tuner.workers.available import backend_for, device_here, may_have_gpu
from tuner.workers.compile_queue import CompileQueue, Job
from tuner.workers.limits import Limits
from tuner.workers.messages import Done, Failed, Phase
from tuner.workers.process import End, WorkerProcess
from tuner.workers.worker import Candidate, Finals, Result
from tuning_db import Outcome

_LOOK_SECONDS = 0.05
_MOST_COMPILERS = 12

# What is compared with candidates runs in a worker of its own, whose threads are nobody's but torch's.
_MEASURING, _COMPARING = "measuring", "comparing"

# Read when torch starts its threads: they must not go on spinning while kernels of another runtime run. Where torch is
# on its own they should, or each of its parallel regions has to wake them.
_ENVIRONMENTS = {_MEASURING: {"GOMP_SPINCOUNT": "200"}, _COMPARING: {}}

Kind = TypeVar("Kind")


class Workers:
    """Starts workers as they are needed; a context manager, which ends them all.

    Args:
        limits: of each worker.
        compilers: how many compile ahead; one for each core, at most twelve, unless given. 0 leaves compiling to the
            measuring worker.
    """

    def __init__(self, limits: Limits | None = None, compilers: int | None = None) -> None:
        self.limits = limits or Limits()
        self.ahead = min(_MOST_COMPILERS, cpu().cores) if compilers is None else compilers
        self._compilers: dict[WorkerProcess, Job | None] = {}
        self._serving: dict[str, WorkerProcess] = {}
        self._queue = CompileQueue()
        self._quiet = False

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all workers, whatever they do."""
        self._queue = CompileQueue()
        for worker in [*self._compilers, *self._serving.values()]:
            worker.stop()
        self._compilers.clear()
        self._serving.clear()

    def submit(self, candidate: Candidate) -> Job:
        """Have `candidate` compiled ahead of its turn; what was prefetched is found again."""
        if not self.ahead:
            return Job(candidate, Result(Outcome.ok))
        job = self._queue.submit(candidate)
        self._hand_out()
        return job

    def prefetch(self, candidates: Iterable[Candidate]) -> list[Job]:
        """Have candidates compiled that will be submitted later, whenever nothing that is submitted waits."""
        jobs = self._queue.prefetch(candidates) if self.ahead else []
        self._hand_out()
        return jobs

    def put_back(self, jobs: Sequence[Job]) -> None:
        """Treat submitted jobs as prefetched: they wait behind all others, and are found when submitted again."""
        if self.ahead:
            self._queue.put_back(jobs)

    def withdraw(self, jobs: Sequence[Job]) -> None:
        """Forget jobs; what is being compiled already goes on, for the cache."""
        self._queue.withdraw(jobs)

    def first_compiled(self, jobs: Sequence[Job]) -> Job:
        """The first of `jobs`, at least one, that has been compiled; waits until there is one."""
        job = self.compiled_within(jobs)
        assert job is not None
        return job

    def compiled_within(self, jobs: Sequence[Job], seconds: float = math.inf) -> Job | None:
        """The first of `jobs` that has been compiled; None if there is none within so many seconds, or no job."""
        until = time.monotonic() + seconds
        while True:
            for job in jobs:
                if job.compiled is not None:
                    return job
            if not jobs or time.monotonic() > until:
                return None
            self._look()

    def evaluate(self, candidate: Candidate | Job) -> Result:
        """Compile, check and time a candidate; whatever becomes of it is the result."""
        job = candidate if isinstance(candidate, Job) else self.submit(candidate)
        compiled = self.first_compiled([job]).compiled
        assert compiled is not None
        if compiled.outcome is not Outcome.ok:
            return compiled
        result = self._value(_MEASURING, "evaluate", job.candidate)
        if isinstance(result, End):
            return Result(result.outcome, result.reason, compile_seconds=compiled.compile_seconds)
        assert isinstance(result, Result)
        if result.outcome not in (Outcome.ok, Outcome.illegal):
            self._dismiss(_MEASURING)
        return Result(
            result.outcome,
            result.reason,
            result.seconds,
            result.spread,
            result.errors,
            max(result.compile_seconds, compiled.compile_seconds),
        )

    def finals(self, finals: Finals) -> dict[int, Timing]:
        """Check candidates once more and time them in turn; by place, those that were right.

        Where a worker ends in it, the candidate that it was busy with is left out, and the others meet again.
        """
        left = list(range(len(finals.candidates)))
        while left:
            only = Finals(tuple(finals.candidates[place] for place in left), finals.seconds, finals.rounds)
            ended_with = _Place()
            timings = self._value(_MEASURING, "finals", only, on_phase=ended_with.note)
            if not isinstance(timings, End):
                return {left[place]: timing for place, timing in timings.items()}
            del left[min(ended_with.place, len(left) - 1)]
        return {}

    def eager(self, spec: Spec, device: Device) -> Timing:
        """Times of the eager implementation. Raises WorkerError if it does not end as it should."""
        return self._required("eager", Timing, spec, device)

    def compiled(self, spec: Spec, device: Device) -> Timing:
        """Times of `torch.compile` of it. Raises WorkerError if it does not end as it should."""
        return self._required("compiled", Timing, spec, device)

    def side_by_side(self, candidate: Candidate, seconds: float, ready: frozenset[str]) -> SideBySide:
        """A candidate and its rivals in turn. Raises WorkerError if the worker does not end as it should."""
        return self._required("side_by_side", SideBySide, candidate, seconds, ready)

    def ceiling(self, device: Device, dtype: str, moved: int) -> Ceiling:
        """What the device can do at most. Raises WorkerError if the worker does not end as it should."""
        return self._required("ceiling", Ceiling, device, dtype, moved)

    def device(self, name: str | None) -> Device:
        """The device called `name`: "cpu", "cuda", a named one, or for None the GPU of this machine if there is one."""
        if name not in (None, "cuda") or not may_have_gpu():
            return device_here(name)
        return self._required("device", Device, name)

    def backend(self, device: Device, wanted: str | None) -> str:
        """The backend for `device`. Raises NoBackendError, as `available.backend_for` does, if there is none."""
        if device.kind == "cpu":
            return backend_for(device, wanted)
        return self._required("backend", str, device, wanted)

    def _required(self, name: str, kind: type[Kind], *arguments: Any) -> Kind:
        value = self._value(_COMPARING, name, *arguments)
        if isinstance(value, End):
            raise WorkerError(task=name, reason=value.reason)
        assert isinstance(value, kind)
        return value

    def _value(
        self, role: str, name: str, *arguments: Any, on_phase: Callable[[Phase], None] = lambda phase: None
    ) -> Any:
        """The value of a task of the worker in that role, or how that worker ended."""
        worker = self._ready(role)
        worker.give(name, *arguments)
        try:
            while True:
                self._look()
                said = worker.hear() or worker.overdue()
                if isinstance(said, Phase):
                    on_phase(said)
                    self._keep_quiet(said.quiet)
                    if said.quiet:
                        worker.go_on()
                elif isinstance(said, End):
                    del self._serving[role]
                    if not said.innocent:
                        return said
                    worker = self._ready(role)
                    worker.give(name, *arguments)
                elif isinstance(said, Failed):
                    raise said.error or WorkerError(task=name, reason=said.text)
                elif isinstance(said, Done):
                    return said.value
        except BaseException:
            self._dismiss(role)  # It may be in the midst of something that nobody waits for.
            raise
        finally:
            self._keep_quiet(False)

    def _ready(self, role: str) -> WorkerProcess:
        while True:
            worker = self._serving.get(role)
            if worker is not None and not worker.is_current:
                self._dismiss(role)
                worker = None
            if worker is None:
                worker = self._serving[role] = WorkerProcess(self.limits, _ENVIRONMENTS[role])
            said = worker.hear() or worker.overdue()
            if isinstance(said, End):
                del self._serving[role]
                # One that was killed between two tasks is replaced; one that cannot even start would be for ever.
                if worker.phase.name == "starting":
                    raise WorkerError(task="start", reason=said.reason)
            elif worker.idle:
                return worker
            else:
                self._look()

    def _dismiss(self, role: str) -> None:
        worker = self._serving.pop(role, None)
        if worker is not None:
            worker.stop()

    def _look(self) -> None:
        """Wait a moment for any worker to say something, and deal with what the compiling ones said."""
        stop_if_interrupted()
        workers = [*self._compilers, *self._serving.values()]
        multiprocessing.connection.wait([worker.connection for worker in workers], timeout=_LOOK_SECONDS)
        for worker, job in list(self._compilers.items()):
            said = worker.hear() or worker.overdue()
            if isinstance(said, End):
                del self._compilers[worker]
                if job is None and worker.phase.name == "starting":
                    raise WorkerError(task="start", reason=said.reason)
                if job is not None and said.innocent:
                    self._queue.again(job)
                elif job is not None:
                    job.compiled = Result(said.outcome, said.reason)
            elif isinstance(said, (Done, Failed)) and job is not None:
                job.compiled = said.value if isinstance(said, Done) else Result(Outcome.compile_error, said.text[-500:])
                self._compilers[worker] = None
        self._hand_out()

    def _hand_out(self) -> None:
        if self._quiet:
            return
        for worker in [worker for worker in self._compilers if not worker.is_current]:
            worker.stop()
            del self._compilers[worker]
        while len(self._compilers) < min(self.ahead, len(self._compilers) + self._queue.waiting()):
            self._compilers[WorkerProcess(self.limits)] = None
        for worker, job in self._compilers.items():
            if self._queue.waiting() and job is None and worker.idle:
                self._compilers[worker] = job = self._queue.take()
                worker.give("compile", job.candidate)

    def _keep_quiet(self, quiet: bool) -> None:
        self._quiet = quiet
        for worker in self._compilers:
            if quiet:
                worker.pause()
            else:
                worker.resume()


class _Place:
    """Which candidate of a finals its worker was busy with last."""

    place = 0

    def note(self, phase: Phase) -> None:
        self.place = phase.place
