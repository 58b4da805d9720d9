"""The command that exports TVM's kernels for a GPU to a machine that has no TVM: python -m tuner gpu-export."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from codegen.backends.tvm_cuda import nvcc
from codegen.device import NAMED, Device
from codegen.errors import WorkloadError
from codegen.kernels.exports.export import export
from codegen.schedules.legality import why_illegal
from codegen.schedules.registry import default, from_settings
from codegen.schedules.schedule import Schedule
from codegen.spec import Spec
from trellis_ops.specs.workload import NamedSpec, load_workload, require_distinct
from tuner.commands.command import command, print_lines
from tuner.gpu_run.exported import FOLDER
from tuner.offline.gpu_check import specs
from tuner.workload import parse_spec

ARCH = "sm_90"
LISTED = ("update", "readout", "readout_transposed", "prefill", "exact", "decode", "decode-chunked")
"""What is exported of the GPU check's specs unless asked otherwise: every kernel once, in what it is for."""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Its parser."""
    exporting = command(commands, "gpu-export", _run, "write TVM's kernels for a GPU where there is no TVM")
    exporting.add_argument("--workload", metavar="FILE", type=Path, help="the forward specs of a file's cuda section")
    exporting.add_argument("--spec", metavar="TEXT", action="append", help='"name: tokens=4096, heads=12" (repeatable)')
    exporting.add_argument("--out", metavar="FOLDER", type=Path, default=FOLDER, help="default: %(default)s")
    exporting.add_argument("--arch", choices=_archs(), default=ARCH, help="default: %(default)s")


def wanted(workload: Path | None, typed: Sequence[str]) -> tuple[NamedSpec, ...]:
    """The specs of a file and those typed, or without either what is `LISTED`.

    Raises:
        WorkloadError: the file or a text describes none, or two have one name.
    """
    own = [parse_spec(text) for text in typed]
    if workload is None and not own:
        return tuple(each for each in specs() if each.name in LISTED)
    listed = () if workload is None else load_workload(workload, "cuda")
    # No backward has a kernel of TVM for CUDA.
    forward = (each for each in listed if each.spec.problem.direction == "forward")
    return require_distinct((*forward, *own), "the command line and the workload together")


def export_all(listed: Sequence[NamedSpec], device: Device, folder: Path) -> Iterator[str]:
    """Export each into a folder of its own, by the default and, if that takes tensor cores, without; what was written.

    Only a card can say which is faster.

    Raises:
        WorkloadError: the default for one of them is not legal.
        CompileError: TVM or nvcc refused a kernel.
    """
    for name, spec, schedule in _each_way(listed, device):
        reason = why_illegal(spec, schedule, device)
        if reason is not None:
            raise WorkloadError(source=name, problem=f"it cannot be exported: {reason}")
        path = folder / name
        manifest = export(spec, schedule, device, path)
        size = sum(file.stat().st_size for file in path.iterdir())
        kernels = ", ".join(part.kernel for part in manifest.parts)
        yield f"{path}: {kernels}; {size / 1000:.0f} KB"


def _each_way(listed: Sequence[NamedSpec], device: Device) -> Iterator[tuple[str, Spec, Schedule]]:
    for each in listed:
        schedule = default("tvm", each.spec, device)
        yield each.name, each.spec, schedule
        settings = schedule.settings()
        if settings["dot_precision"] != "ieee":
            other = from_settings(schedule.backend, {**settings, "dot_precision": "ieee"})
            yield f"{each.name}-multiply-adds", each.spec, other


def _run(options: argparse.Namespace, console: Console) -> int:
    listed = wanted(options.workload, options.spec or ())
    for line in export_all(listed, NAMED[options.arch], options.out):
        print_lines(console, [line])
    if not nvcc.is_here():
        print_lines(console, ["nvcc is not on the PATH: only sources were written, for nvcc on the other machine"])
    return 0


def _archs() -> list[str]:
    return [name for name, device in NAMED.items() if device.kind == "cuda"]
