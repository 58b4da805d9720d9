"""Commands about a GPU that need not be here."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from codegen.device import NAMED, Device, cpu
from trellis_ops.specs.workload import NamedSpec
from tuner.budget import Budget, parse_budget
from tuner.commands.command import FAILED, command, print_lines
from tuner.errors import OfflineDeviceError
from tuner.offline.candidates import FOLDER, MOST, path_for, rank, write
from tuner.offline.gpu_check import DEVICES, SAMPLE, Checked, check, jobs
from tuning_db import default_store


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Their parsers."""
    checking = command(commands, "gpu-check", _gpu_check, "compile GPU kernels without a GPU, and say what they need")
    checking.add_argument("--arch", choices=_gpus(), action="append", help="compile for this one (repeatable)")
    checking.add_argument("--sample", metavar="N", type=int, default=SAMPLE, help="schedules beside each default")
    checking.add_argument("--processes", metavar="N", type=int, default=cpu().cores, help="compile at once")


def add_offline(tuning: argparse.ArgumentParser) -> None:
    """Give `tune` what it has for a GPU that is not here."""
    tuning.add_argument(
        "--offline", action="store_true", help="time nothing: compile for --device, and rank, for later"
    )
    tuning.add_argument("--most", metavar="N", type=int, default=MOST, help=f"--offline: of each spec (default {MOST})")
    tuning.add_argument("--folder", metavar="PATH", type=Path, default=FOLDER, help="--offline: where the list goes")


def prepare(options: argparse.Namespace, workload: Sequence[NamedSpec], device: Device, console: Console) -> int:
    """Write the ranked list of candidates for a GPU that need not be here.

    Raises:
        OfflineDeviceError: `device` is a CPU, whose kernels are timed where they are compiled.
    """
    if device.kind == "cpu":
        raise OfflineDeviceError(device=device.key(), known=", ".join(_gpus()))
    budget = parse_budget(options.budget) if options.budget else Budget(seconds=600.0)
    seconds = budget.seconds or 3600.0
    most = budget.trials or options.most
    ranked = []
    for each in workload:
        ranked.append(one := rank(each, device, most, seconds, cpu().cores))
        words = f"{one.tried} compiled, {one.pruned} pruned, {len(one.guesses)} to be measured"
        console.print(f"{each.name}: {words}", highlight=False)
    path = path_for(device, options.folder)
    write(ranked, path)
    print_lines(console, [f"{path}: take it to the card, and run `make gpu` there"])
    return 0


def _gpus() -> list[str]:
    return [name for name, device in NAMED.items() if device.kind != "cpu"]


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
    about = [job.device.arch, job.name, job.role, one.kernel, job.schedule.brief()]
    return [*about, *numbers, f"{one.seconds:.1f}"]
