"""Commands about a GPU that need not be here."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from codegen.device import NAMED, cpu
from codegen.schedule import Schedule, TritonSchedule
from tuner.command import FAILED, command, print_lines
from tuner.gpu_check import DEVICES, SAMPLE, Checked, check, jobs
from tuning_db import default_store


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Their parsers."""
    checking = command(commands, "gpu-check", _gpu_check, "compile GPU kernels without a GPU, and say what they need")
    gpus = [name for name, device in NAMED.items() if device.kind != "cpu"]
    checking.add_argument("--arch", choices=gpus, action="append", help="compile for this one (repeatable)")
    checking.add_argument("--sample", metavar="N", type=int, default=SAMPLE, help="schedules beside each default")
    checking.add_argument("--processes", metavar="N", type=int, default=cpu().cores, help="compile at once")


def _gpu_check(options: argparse.Namespace, console: Console) -> int:
    todo = list(jobs(options.arch or DEVICES, options.sample, default_store()))
    console.print(f"{len(todo)} schedules to compile, {options.processes} at once", highlight=False)
    done = sorted(check(todo, options.processes), key=_order)
    console.print(_table(done))
    failed = [one for one in done if one.fails]
    for one in failed:
        where = f"{one.job.name} on {one.job.device.arch}, {one.kernel}"
        print_lines(console, [f"{where}: the {one.job.role} schedule {one.fault}"])
    console.print(f"{len(done) - len(failed)} of {len(done)} kernels passed", highlight=False)
    return FAILED if failed else 0


def _order(one: Checked) -> tuple[object, ...]:
    return one.job.device.arch, one.job.name, one.job.role, one.job.schedule.key(), one.kernel


def _table(done: list[Checked]) -> Table:
    table = Table(title="What GPU kernels need, by their compilers", title_justify="left")
    for name in ("device", "spec", "", "kernel", "schedule"):
        table.add_column(name, no_wrap=True)
    for name in ("registers", "spilled", "shared", "occupancy", "mma", "wgmma", "seconds"):
        table.add_column(name, justify="right")
    for one in done:
        table.add_row(*map(escape, _row(one)))
    return table


def _row(one: Checked) -> list[str]:
    needs, job = one.needs, one.job
    numbers = ["-"] * 6
    if needs is not None:
        share = "-" if one.occupancy is None else f"{one.occupancy:.0%}"
        counts = (needs.registers, needs.spill_bytes, needs.shared_bytes, share, needs.mma, needs.wgmma)
        numbers = ["-" if count is None else str(count) for count in counts]
    about = [job.device.arch, job.name, job.role, one.kernel, _short(job.schedule)]
    return [*about, *numbers, f"{one.seconds:.1f}"]


def _short(schedule: Schedule) -> str:
    """What sets a schedule apart, so that a row fits on a line."""
    if not isinstance(schedule, TritonSchedule):
        return schedule.backend
    words = [f"{schedule.tile_rows} rows", f"{schedule.num_warps} warps", schedule.dot_precision]
    words += [f"{schedule.num_stages} stages"] if schedule.num_stages > 1 else []
    words += [f"every {schedule.checkpoint_spacing}"] if schedule.checkpoint_spacing > 1 else []
    return ", ".join([*words, *([schedule.ptxas] if schedule.ptxas != "standard" else [])])
