"""What winners are compared with is compiled while kernels are checked: it takes minutes, and little of the card."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

import torch

from codegen.device import Device
from codegen.spec import Spec, spec_of_key
from trellis_ops.specs.workload import NamedSpec
from tuner.measure.baselines.rivals import compiled_long, fla_call
from tuner.measure.side_by_side import COMPILED, compiled_call, compiled_spec
from tuner.processes.own_process import own_process

RIVALS, BY_TORCH = KINDS = ("rivals", "by torch")
"""What each process runs, one after another: kernels of flash-linear-attention, and what `torch.compile` makes."""

_LOOK_SECONDS = 0.2
_LAST_WORDS_SECONDS = 2.0


class WarmUp:
    """Processes that run each rival once, so that caches on disk hold it; a context manager.

    Args:
        device: where; nothing is started on a CPU, whose cores others need.
        workload: whose rivals.
        log: what the processes say besides goes there.
    """

    def __init__(self, device: Device, workload: Sequence[NamedSpec], log: Path) -> None:
        self._ready: set[tuple[str, str]] = set()
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._listeners: dict[str, threading.Thread] = {}
        if device.kind == "cpu":
            return
        log.parent.mkdir(parents=True, exist_ok=True)
        for kind in KINDS:
            command = own_process("tuner.gpu_run.warm_up", kind, *(each.spec.key() for each in workload))
            with log.open("a") as said:
                self.start(kind, command, said)

    def __enter__(self) -> WarmUp:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes.values():
            _end(process)

    def start(self, kind: str, command: Sequence[str], said: IO[str]) -> None:
        """Start the process of a kind, in a session of its own, and listen to it."""
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdout=pipe, stderr=said, text=True, start_new_session=True)
        self._processes[kind] = process
        self._listeners[kind] = threading.Thread(target=self.listen, args=(process,), daemon=True)
        self._listeners[kind].start()

    def ready(self, spec: Spec) -> frozenset[str]:
        """The rivals of `spec` that have run once."""
        return frozenset(rival for rival, key in set(self._ready) if key == spec.key())

    def wait(self, kind: str, seconds: float) -> None:
        """Until all of a kind have run, but no longer than `seconds`; what is not ready then is given up."""
        process = self._processes.get(kind)
        until = time.monotonic() + seconds
        while process is not None and process.poll() is None:
            if time.monotonic() > until:
                _end(process)
            time.sleep(_LOOK_SECONDS)
        if kind in self._listeners:
            self._listeners[kind].join(_LAST_WORDS_SECONDS)

    def listen(self, process: subprocess.Popen[str]) -> None:
        """Note what a process says it has run, until it ends."""
        assert process.stdout is not None
        for line in process.stdout:
            rival, _, key = line.rstrip("\n").partition(" ")  # Libraries say things of their own.
            self._ready.add((rival, key))


def _end(process: subprocess.Popen[str]) -> None:
    # Compilers that it has started would go on, and hold its pipe open.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main(kind: str, *keys: str) -> None:
    """Run the rivals of a kind once for each spec, and print rival and key as soon as that is done."""
    from tuner.workers.available import device_here

    device = device_here("cuda")
    for rival, spec in _in_order(kind, [spec_of_key(key) for key in keys]):
        started = time.monotonic()
        try:
            with torch.set_grad_enabled(spec.problem.direction != "forward"):
                _run_once(rival, spec, device)
        except Exception:
            traceback.print_exc()  # It is left out of the comparison, and the log says why.
            continue
        print(rival, spec.key(), flush=True)
        print(f"{rival} for {spec.key()}: {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)


def _in_order(kind: str, specs: Sequence[Spec]) -> list[tuple[str, Spec]]:
    """Each rival with all specs that have it: what it has compiled for one serves the next."""
    of_specs = [(rival, spec) for spec in specs for rival in ((COMPILED,) if kind == BY_TORCH else compiled_long(spec))]
    order = {rival: place for place, rival in enumerate(dict.fromkeys(rival for rival, _ in of_specs))}
    return sorted(of_specs, key=lambda pair: order[pair[0]])


def _run_once(rival: str, spec: Spec, device: Device) -> None:
    if rival == COMPILED:
        compiled_call(compiled_spec(spec), device).run()
    else:
        fla_call(rival, spec, device).run()
    torch.cuda.synchronize()


if __name__ == "__main__":
    main(*sys.argv[1:])
