"""TVM's kernels on a card where there is no TVM: exported elsewhere, here checked against the oracle and timed.

They run in a process of their own, since a bad access leaves a card's context unusable. A process that has found
something wrong ends, and the next goes on with what is left.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import IO

import msgspec
import torch

from codegen.device import NAMED, Device
from codegen.errors import ExportError, TrellisError
from codegen.kernels.exports.export import templates_digest
from codegen.kernels.exports.exported import MANIFEST, described, operator_of_export, read_manifest
from codegen.kernels.operator import CompiledOperator
from tuner.gpu_run.ledger import Entry
from tuner.gpu_run.plan import GpuRun
from tuner.measure.measure import measure
from tuner.processes.own_process import own_process
from tuner.verify.check import check
from tuner.verify.inputs.trellis import timing_inputs
from tuner.verify.launch import bind
from tuner.workers.worker import Ready, rotated
from tuning_db import Outcome, shortened

STAGE = "tvm"

FOLDER = Path("gpu-exports")
"""Where `python -m tuner gpu-export` writes, and the GPU run looks."""

PATIENCE = 150.0
"""Seconds that one operator may take to be loaded, checked and timed."""

_LEAST_PATIENCE = 60.0
_SECONDS, _ROUNDS = 0.5, 30
_TEXT = 500


class Found(msgspec.Struct, frozen=True):
    """What became of one exported operator.

    Attributes:
        name: of its folder.
        ok: whether it was right, before it was timed and after.
        text: the same in words.
        errors: relative error of each output.
        seconds: median of one call; None unless it was right.
        spread: relative spread of `seconds`.
    """

    name: str
    ok: bool
    text: str
    errors: dict[str, float] = {}
    seconds: float | None = None
    spread: float | None = None


def exports_in(folder: Path) -> list[Path]:
    """The folders of exported operators in `folder`; none if it is not there."""
    return sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))


def why_left_out(device: Device, folder: Path = FOLDER) -> str | None:
    """Why no exported operator is run, in one sentence; None if there are some."""
    if device.kind != "cuda":
        return "exported operators are for NVIDIA's GPUs only"
    if not exports_for(device, folder):
        return f"no operator for {device.arch} in {folder}: `python -m tuner gpu-export` writes them where TVM is"
    return None


def exports_for(device: Device, folder: Path = FOLDER) -> list[Path]:
    """Those of `exports_in` that were made for the architecture of `device`, and those that cannot be read."""
    return [path for path in exports_in(folder) if _arch(path) in (device.arch, None)]


def _arch(folder: Path) -> str | None:
    try:
        return read_manifest(folder).arch
    except ExportError:
        return None


def check_exported(run: GpuRun, folder: Path = FOLDER) -> Iterator[Entry]:
    """Check and time what was not yet, as far as the time goes; findings as they come, old ones included."""
    if why_left_out(run.device, folder) is not None:
        return
    waiting: dict[str, tuple[Path, str]] = {}
    for path in exports_for(run.device, folder):
        state = state_of_export(path)
        known = run.ledger.find(STAGE, path.name, state)
        if known is not None:
            yield known
        else:
            waiting[path.name] = path, state
    patience = max(_LEAST_PATIENCE, min(PATIENCE, run.left_for(STAGE)))
    finding = examine_all([path for path, _ in waiting.values()], patience)
    while run.left_for(STAGE) > 0 and (found := next(finding, None)) is not None:
        values = {"errors": found.errors, "seconds": found.seconds, "spread": found.spread}
        state = waiting[found.name][1]
        entry = Entry(stage=STAGE, name=found.name, state=state, ok=found.ok, text=found.text, values=values)
        yield run.ledger.add(entry)
    finding.close()


def examine_all(folders: Sequence[Path], patience: float = PATIENCE) -> Generator[Found, None, None]:
    """Examine each operator, in processes of their own; one that dies, or takes too long, is a finding."""
    left = list(folders)
    while left:
        ended = yield from _reported(left, patience)
        if ended is not None:
            yield Found(left.pop(0).name, False, ended)


def examined(name: str, operator: CompiledOperator) -> Found:
    """What becomes of an operator that is loaded: compared with the oracle, timed alone, compared again."""
    checked = check(operator, operator.spec)
    if checked.outcome is not Outcome.ok:
        return Found(name, False, f"{checked.outcome.value}: {checked.reason}", checked.errors)
    spec, device = operator.spec, operator.device
    launch = bind(operator, timing_inputs(spec, device))
    others = tuple(bind(operator, inputs) for inputs in rotated(spec, device))
    ready = Ready(operator, launch, others, launch.outputs_of_run())
    timing = measure({name: ready.timed()}, device, seconds=_SECONDS, rounds=_ROUNDS, settle=True)[name]
    outcome, reason = ready.again()
    if outcome is not Outcome.ok:
        return Found(name, False, f"{outcome.value}: {reason}", checked.errors)
    return Found(name, True, "right", checked.errors, timing.seconds, timing.spread)


def main(folders: Sequence[str]) -> None:
    """Examine the operators in these folders, a line of JSON each; end with the first that is not right."""
    for folder in map(Path, folders):
        found = _examined_in(folder)
        print(msgspec.json.encode(found).decode(), flush=True)
        if not found.ok:
            return


def _examined_in(folder: Path) -> Found:
    """The one place where exceptions of an exported operator become a finding."""
    try:
        found = examined(folder.name, operator_of_export(folder))
        stale = _why_stale(folder)
    except Exception as error:
        text = str(error) if isinstance(error, TrellisError) else f"{type(error).__name__}: {error}"
        return Found(folder.name, False, shortened(text, _TEXT))
    return found if stale is None else msgspec.structs.replace(found, text=f"{found.text}; {stale}")


def _why_stale(folder: Path) -> str | None:
    manifest = read_manifest(folder)
    _, schedule = described(folder, manifest)
    device = NAMED.get(manifest.arch)
    if device is not None and templates_digest(schedule, device) != manifest.templates:
        return "it was exported from other templates than those that are here"
    return None


def state_of_export(folder: Path) -> str:
    """What a finding about an exported operator holds for: its content, and the version of torch."""
    try:
        digest = read_manifest(folder).digest()
    except ExportError:
        digest = "unreadable"
    return f"{digest}; torch {torch.__version__}"


def _reported(left: list[Path], patience: float) -> Generator[Found, None, str | None]:
    """What one process finds, each taken from `left`; returns why it ended before it had begun with the next, if so."""
    command = own_process("tuner.gpu_run.exported", *map(str, left))
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert process.stdout is not None
        stopped = threading.Event()
        try:
            while line := _line(process.stdout, process, patience, stopped):
                try:
                    found = msgspec.json.decode(line, type=Found)
                except msgspec.DecodeError:
                    continue  # A library's own words.
                left.pop(0)
                yield found
                if not found.ok:
                    process.kill()
                    return None
        except BaseException:
            # Nobody wants the rest.
            process.kill()
            raise
        finally:
            process.wait()
        if not left:
            return None
        if stopped.is_set():
            return f"no answer within {patience:g} s"
        errors.seek(0)
        return f"its process ended with {process.returncode}: {errors.read().strip()[-_TEXT:]}"


def _line(lines: IO[str], process: subprocess.Popen[str], patience: float, stopped: threading.Event) -> str:
    """The next line, empty at the end; a process that is too slow for it is stopped."""

    def stop() -> None:
        stopped.set()
        process.kill()

    timer = threading.Timer(patience, stop)
    timer.start()
    try:
        return lines.readline()
    finally:
        timer.cancel()


if __name__ == "__main__":
    main(sys.argv[1:])
