"""The command that does on a card all that needs one: python -m tuner.gpu_run."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from codegen.device import Device
from codegen.errors import TrellisError, WorkloadError
from trellis_ops.specs.workload import NamedSpec, load_workload
from tuner.errors import GpuRunInUseError, NoGpuError
from tuner.gpu_run import exported, sanitizer
from tuner.gpu_run.correctness import check_all, kernels_to_check
from tuner.gpu_run.ledger import Entry, Ledger
from tuner.gpu_run.plan import GpuRun
from tuner.gpu_run.precision import precisions, time_precisions
from tuner.gpu_run.tables import page
from tuner.gpu_run.timing import time_all
from tuner.gpu_run.tuning import list_for, tune_all
from tuner.gpu_run.warm_up import KINDS, WarmUp
from tuner.offline import candidates
from tuner.processes.interruption import interruptible
from tuner.workers.pool import Workers
from tuner.workload import DEFAULT_FILE, RULES_FILE
from tuning_db import Store, TuningDatabaseError

DEFAULT_FILES = (DEFAULT_FILE, RULES_FILE)
"""What is tuned and timed: TRELLIS' operators, then every named rule."""

_FAILED, _INTERRUPTED = 1, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the GPU run; 0 if every kernel was right, 1 if one was not or nothing could be run, 130 if interrupted."""
    options = _parser().parse_args(arguments)
    try:
        with interruptible(), Workers() as workers:
            return _run(options, workers)
    except (TrellisError, TuningDatabaseError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return _FAILED
    except KeyboardInterrupt:
        print("interrupted; what was found is kept, and the same command goes on from there", file=sys.stderr)
        return _INTERRUPTED


def _run(options: argparse.Namespace, workers: Workers) -> int:
    device = workers.device(options.device)
    if options.device is None and device.kind == "cpu":
        raise NoGpuError(device=device.key())
    backend = workers.backend(device, None)
    folder = Path(options.folder) / device.key()
    run = GpuRun(
        device=device,
        backend=backend,
        workload=_workload(options.workload or DEFAULT_FILES, device),
        workers=workers,
        ledger=Ledger(folder / "findings.jsonl"),
        store=Store(folder / "winners"),
        candidates=options.candidates,
        seconds=60.0 * options.minutes,
        most=options.most,
    )
    with _alone(folder):
        return _whole(run, folder, options.minutes)


def _workload(files: Sequence[str | Path], device: Device) -> tuple[NamedSpec, ...]:
    """The specs of all files.

    Raises:
        WorkloadError: a name is in two of them, or a file is none.
    """
    named: dict[str, NamedSpec] = {}
    for file in files:
        for each in load_workload(Path(file), device.kind):
            if each.name in named:
                raise WorkloadError(source=file, problem=f"{each.name!r} is in another file too; rename it")
            named[each.name] = each
    return tuple(named.values())


def _whole(run: GpuRun, folder: Path, minutes: float) -> int:
    device, backend = run.device, run.backend
    left_out = list(_left_out(device, run.candidates))
    print(f"{device.key()}, backend {backend}: {minutes:g} minutes; findings in {folder}")
    for each in left_out:
        print(f"left out: {each}")
    with WarmUp(device, run.workload, folder / "warm-up.log") as warm:
        good = all([_said(entry) for entry in _stages(run, warm)])
    left_out += list(_not_reached(run))
    path = folder / "tables.md"
    path.write_text(page(run.ledger, device.key(), left_out))
    print(f"{path} has the tables, {folder / 'winners'} the winners")
    return 0 if good else _FAILED


def _stages(run: GpuRun, warm: WarmUp) -> Iterator[Entry]:
    yield from check_all(run, _listed(run))
    if sanitizer.why_left_out(run.device) is None:
        yield from sanitizer.sanitize_all(run)
    # From here on times are taken, and nothing else may run on the card.
    for kind in KINDS:
        warm.wait(kind, run.left_for("sanitizer"))
    yield from tune_all(run)
    yield from time_precisions(run)
    yield from exported.check_exported(run)
    yield from time_all(run, warm)


def _listed(run: GpuRun) -> tuple[NamedSpec, ...] | None:
    """A CPU has no kernels beside those of its workload; None for a GPU, whose check has a list of its own."""
    return run.workload if run.device.kind == "cpu" else None


def _not_reached(run: GpuRun) -> Iterator[str]:
    ledger, device = run.ledger, run.device
    kernels = len(kernels_to_check(run, _listed(run)))
    operators = len(exported.exports_for(device)) if exported.why_left_out(device) is None else 0
    examinations = len(sanitizer.TOOLS) * (kernels + operators) if sanitizer.why_left_out(device) is None else 0
    planned = {
        ("correct", "kernels were not checked"): kernels,
        ("sanitizer", "examinations by the sanitizer were not made"): examinations,
        ("precision", "precisions were not timed"): len(list(precisions(run))),
        ("tvm", "exported operators were not run"): operators,
    }
    for (stage, words), count in planned.items():
        if (missed := count - len(ledger.of(stage))) > 0:
            yield f"{missed} of {count} {words}; the time was up, run again to go on"
    for stage in ("tuned", "timed"):
        missing = [each.name for each in run.workload if each.name not in {one.name for one in ledger.of(stage)}]
        if missing:
            yield f"not {stage}: {', '.join(missing)}; the time was up, run again to go on"


def _said(entry: Entry) -> bool:
    words = entry.text.replace("\n", " ")[:160] or "done"
    print(
        f"{time.strftime('%H:%M:%S')} {entry.stage:9} {'ok ' if entry.ok else 'BAD'} {entry.name}: {words}", flush=True
    )
    return entry.ok


def _left_out(device: Device, folder: Path) -> Iterator[str]:
    if importlib.util.find_spec("tvm") is None:
        yield "tvm is not installed: its kernels are those that were exported"
    reason = sanitizer.why_left_out(device)
    if reason is not None:
        yield f"the sanitizer: {reason}"
    reason = exported.why_left_out(device)
    if reason is not None:
        yield f"TVM's kernels: {reason}"
    if list_for(device, folder) is None:
        yield (
            f"no list of candidates for {device.arch} in {folder}: after the default, those legal schedules are tried "
            "first that are nearest to the best"
        )


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold `folder`, made if it is not there: what two runs would time, each would time beside the other."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".gpu-run.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise GpuRunInUseError(folder=folder) from error
    try:
        yield
    finally:
        lock.release()


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not 0 < minutes < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no time in minutes; give a number above 0")
    return minutes


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of candidates; give 1 or more")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tuner.gpu_run", description=__doc__)
    parser.add_argument(
        "--minutes", type=_minutes, default=9.5, help="how long all of it may take (default %(default)s)"
    )
    parser.add_argument(
        "--most", type=_count, metavar="N", help="candidates of each spec (default: as the time allows)"
    )
    parser.add_argument("--folder", default="gpu-results", help="what is brought home (default %(default)s)")
    parser.add_argument("--device", metavar="NAME", help="cpu or cuda; the GPU unless given")
    listed = "a file like tuner/workload.yaml; may be given several times (default: that and workload_of_rules.yaml)"
    parser.add_argument("--workload", metavar="FILE", action="append", help=listed)
    parser.add_argument("--candidates", metavar="FOLDER", type=Path, default=candidates.FOLDER, help="prepared lists")
    return parser


if __name__ == "__main__":
    sys.exit(main())
