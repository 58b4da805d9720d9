"""Eager PyTorch and `torch.compile` of it, in a process of their own with the thread settings that torch chooses.

Idle threads of torch's OpenMP runtime spin, which suits code that is one parallel region after another and takes the
cores from TVM's threads. So the kernels run in the session's process, where they spin less, and eager code in this one,
where nothing is set; the session asks for one sample at a time, so that both still take turns.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from codegen.device import Device
from codegen.spec import Spec
from tests.benchmarks.subjects.calls import Call, subject, training_step
from tests.benchmarks.subjects.compiled import compile_eager
from tests.benchmarks.turns import sample
from trellis_ops.lm.train.processes.allocator import keep_freed_memory
from tuner.measure.ceiling import Probe, limits
from tuner.measure.cost import Cost
from tuner.measure.timed import Timed
from tuner.verify.inputs.trellis import torch_device

EAGER, COMPILE, CEILING = "eager", "torch.compile", "ceiling"
UNSET = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
"""Environment variables that the process does not see."""

_UNTIL_THREADS_SLEEP = 0.02


class Rivals:
    """The process, as seen from the session's. A context manager; it ends with the session at the latest."""

    def __init__(self, device: Device) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, device))
        kept = {name: os.environ.pop(name) for name in UNSET if name in os.environ}
        try:
            self._process.start()
        finally:
            os.environ.update(kept)
        other.close()

    def __enter__(self) -> Rivals:
        return self

    def __exit__(self, *_: object) -> None:
        # It leaves its loop at the end of the pipe.
        self._connection.close()
        self._process.join()

    def prepare(self, spec: Spec, compile_limit: float) -> dict[str, str]:
        """Make the inputs of `spec`, compile; a note on each implementation."""
        notes: dict[str, str] = self._ask("prepare", spec, compile_limit)
        return notes

    def prepare_training(self, spec: Spec, compile_limit: float) -> dict[str, str]:
        """The same for training steps, forward and backward."""
        notes: dict[str, str] = self._ask("prepare_training", spec, compile_limit)
        return notes

    def results(self) -> dict[str, Tensor]:
        """What each implementation that can run gives for y, in float32."""
        return {name: torch.from_numpy(y) for name, y in self._ask("results").items()}

    def prepare_ceiling(self, dtype: str, cost: Cost) -> None:
        """Find what reaches the limits of the machine; `CEILING` samples what `cost` would take at the nearer one."""
        self._ask("prepare_ceiling", dtype, cost)

    def sampler(self, name: str) -> Callable[[], float]:
        """Takes one sample of an implementation, or of `CEILING`."""
        return lambda: float(self._ask("sample", name))

    def _ask(self, method: str, *arguments: object) -> Any:
        self._connection.send((method, arguments))
        succeeded, answer = self._connection.recv()
        if not succeeded:
            raise RuntimeError(f"the process of eager and torch.compile failed:\n{answer}")
        return answer


def _serve(connection: Connection, device: Device) -> None:
    if device.kind == "cpu":
        torch.set_num_threads(device.cores)
    runner = _Runner(device)
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return
        try:
            with torch.no_grad():
                answer = getattr(runner, method)(*arguments)
        except Exception:
            connection.send((False, traceback.format_exc()))
        else:
            connection.send((True, answer))


class _Runner:
    """The same, as seen from inside."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def prepare(self, spec: Spec, compile_limit: float) -> dict[str, str]:
        self._bound = subject(spec, torch_device(self._device))
        compiled = compile_eager(self._bound, compile_limit)
        self._calls: dict[str, Call] = {EAGER: self._bound.eager}
        if compiled.call is not None:
            self._calls[COMPILE] = compiled.call
        self._steps: dict[str, Callable[[], object]] = dict(self._calls)
        return {EAGER: f"trellis_ops.eager.forward.{self._bound.eager.function.__name__}", COMPILE: compiled.note}

    def prepare_training(self, spec: Spec, compile_limit: float) -> dict[str, str]:
        keep_freed_memory()
        self._bound = subject(spec, torch_device(self._device), gradients=True)
        with torch.enable_grad():
            compiled = compile_eager(self._bound, compile_limit)
        calls = {EAGER: self._bound.eager} | ({} if compiled.call is None else {COMPILE: compiled.call})
        self._steps = {name: training_step(self._bound, call) for name, call in calls.items()}
        return {EAGER: "autograd of trellis_ops.eager.forward.attention", COMPILE: compiled.note}

    def results(self) -> dict[str, Any]:
        found = {}
        for name, call in self._calls.items():
            self._bound.reset()
            found[name] = call.y().float().cpu().numpy().copy()
        self._bound.reset()
        return found

    def prepare_ceiling(self, dtype: str, cost: Cost) -> None:
        self._limits = limits(self._device, dtype, cost)

    def sample(self, name: str) -> float:
        seconds = self._floor() if name == CEILING else sample(self._timed(name), self._device)
        time.sleep(_UNTIL_THREADS_SLEEP)
        return seconds

    def _timed(self, name: str) -> Timed:
        return Timed(self._steps[name], self._bound.reset)

    def _floor(self) -> float:
        return max(times * self._probed(probe) for probe, times in self._limits)

    def _probed(self, probe: Probe) -> float:
        with probe.on_its_threads():
            return sample(Timed(probe.run, lambda: None), self._device)
