"""What compares itself with the winners is compiled while kernels are checked: it takes minutes, and no card."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import torch

from codegen.device import Device
from codegen.spec import Spec, spec_of_key
from tuner.inputs import torch_device
from tuner.neighbours import neighbours
from tuner.side_by_side import compiled_call, compiled_spec
from tuner.workload import NamedSpec

NEIGHBOURS, COMPILED = "neighbours", "compiled"

_ROOT = Path(__file__).resolve().parents[2]
_LOOK_SECONDS = 0.2


class WarmUp:
    """A process per kind of rival, which runs each once, so that caches on disk hold it; a context manager.

    Args:
        device: where; nothing is started on a CPU, whose cores others need.
        workload: whose rivals.
        log: what the processes say besides goes there.
    """

    def __init__(self, device: Device, workload: Sequence[NamedSpec], log: Path) -> None:
        self._ready: set[tuple[str, str]] = set()
        self._processes: dict[str, subprocess.Popen[str]] = {}
        if device.kind == "cpu":
            return
        log.parent.mkdir(parents=True, exist_ok=True)
        for kind in (NEIGHBOURS, COMPILED):
            command = [sys.executable, "-m", "tuner.campaign.warm_up", kind, *(each.spec.key() for each in workload)]
            with log.open("a") as said:
                process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True, cwd=_ROOT)
            self._processes[kind] = process
            threading.Thread(target=self.listen, args=(kind, process), daemon=True).start()

    def __enter__(self) -> WarmUp:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()

    def is_ready(self, kind: str, spec: Spec) -> bool:
        """Whether the rivals of `spec` have run once."""
        return (kind, spec.key()) in self._ready

    def wait(self, kind: str, seconds: float) -> None:
        """Until all of a kind have run, but no longer than `seconds`; what is not ready then is given up."""
        process = self._processes.get(kind)
        until = time.monotonic() + seconds
        while process is not None and process.poll() is None:
            if time.monotonic() > until:
                process.kill()
                process.wait()
            time.sleep(_LOOK_SECONDS)

    def listen(self, kind: str, process: subprocess.Popen[str]) -> None:
        """Note what a process says it has run, until it ends."""
        assert process.stdout is not None
        for line in process.stdout:
            self._ready.add((kind, line.strip()))


def main(kind: str, *keys: str) -> None:
    """Run the rivals of each spec once, and print its key when that is done."""
    from tuner.available import device_here

    device = device_here("cuda")
    for spec in map(spec_of_key, keys):
        started = time.monotonic()
        try:
            with torch.set_grad_enabled(spec.problem.direction != "forward"):
                _run_once(kind, spec, device)
        except Exception:
            traceback.print_exc()  # It is left out of the comparison, and the log says why.
            continue
        print(spec.key(), flush=True)
        print(f"{kind} of {spec.key()}: {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)


def _run_once(kind: str, spec: Spec, device: Device) -> None:
    if kind == COMPILED:
        compiled_call(compiled_spec(spec), device).run()
    else:
        for call in neighbours(spec, torch_device(device))[0].values():
            call.run()
    torch.cuda.synchronize()


if __name__ == "__main__":
    main(*sys.argv[1:])
