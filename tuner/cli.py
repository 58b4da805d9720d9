"""The command line: tune, slots, prune, show, report, ship, export, import, merge, and two experiments."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from optuna.exceptions import OptunaError
from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError

from codegen.device import Device, named
from codegen.errors import BackendUnavailableError, TrellisError, WorkloadError
from codegen.rule import Rule
from codegen.rules import rule_named
from codegen.schedules.registry import backends
from trellis_ops.specs.workload import NamedSpec, load_workload, require_distinct
from tuner.budget import DEFAULT, Budget, parse_budget
from tuner.commands import experiments, gpu_export
from tuner.commands import gpu as gpu_commands
from tuner.commands import records as record_commands
from tuner.commands.command import (
    FAILED,
    command,
    command_line,
    print_lines,
    program,
    storage_of,
    storage_option,
    storage_url,
)
from tuner.errors import BudgetError, PolicyError
from tuner.experiments.slots import BUDGET, recommend
from tuner.offline.offline import examine_some
from tuner.policy import POLICIES, policy_for
from tuner.processes.interruption import interruptible, stop_if_interrupted
from tuner.report import report
from tuner.search.progress import SearchProgress
from tuner.search.study import StudySession
from tuner.search.tune import Tuned, tune
from tuner.studies.storage_url import shown
from tuner.studies.studies import unusable
from tuner.workers.pinning import keep_to
from tuner.workers.pool import Workers
from tuner.workload import DEFAULT_FILE, parse_spec
from tuning_db import TuningDatabaseError, default_store
from tuning_db.masking import masked
from tuning_db.records.field_rules import printable

_PLAIN_WIDTH = 160
_OFFLINE_DEVICE = "sm_90"
_SAMPLE, _SAMPLE_SECONDS = 6, 15.0
_USAGE, _INTERRUPTED = 2, 130


def main(arguments: Sequence[str]) -> int:
    """Run one command; 0 if all went well, 1 if not, 2 for a mistake on the command line, 130 if interrupted."""
    options = _parser().parse_args(arguments)
    options.command_line = command_line(arguments, getattr(options, "storage", None))
    console = Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        with interruptible():
            code: int = options.run(options, console)
            return code
    except (WorkloadError, BudgetError, PolicyError) as error:
        errors.print(f"error: {printable(masked(str(error)))}", markup=False)
        return _USAGE
    except (TrellisError, TuningDatabaseError) as error:
        errors.print(f"error: {printable(masked(str(error)))}", markup=False)
        return FAILED
    except (SQLAlchemyError, OptunaError) as error:
        errors.print(f"error: {unusable(storage_url(options), error)}", markup=False)
        return FAILED
    except OSError as error:
        errors.print(f"error: {printable(masked(str(error)))}", markup=False)
        return FAILED
    except KeyboardInterrupt:
        errors.print("interrupted; what was measured is kept, and the same command goes on from there", markup=False)
        return _INTERRUPTED


def _session(options: argparse.Namespace, workers: Workers, device: Device) -> StudySession:
    return StudySession(
        device=device,
        backend=workers.backend(device, options.backend),
        storage=storage_of(options),
        store=default_store(),
        budget=parse_budget(options.budget) if options.budget else DEFAULT,
        workers=workers,
        with_compile=getattr(options, "compile", False),
        source=options.command_line,
        timing=policy_for(device, options.timing).name,
    )


def _tune(options: argparse.Namespace, console: Console) -> int:
    if options.cores is not None:
        keep_to(options.cores)
    if options.offline:
        device = named(_OFFLINE_DEVICE if options.device is None else options.device)
        return gpu_commands.prepare(options, _workload(options, device), device, console)
    with Workers() as workers:
        device = workers.device(options.device)
        workload = _workload(options, device)
        return _tune_workload(options, workload, _session(options, workers, device), console)


def _tune_workload(
    options: argparse.Namespace, workload: Sequence[NamedSpec], session: StudySession, console: Console
) -> int:
    device = session.device
    console.print(
        f"{device.key()}, backend {session.backend}: {len(workload)} specs, {session.budget} each; studies in "
        f"{shown(session.storage.url)}",
        highlight=False,
        soft_wrap=True,
    )
    results, problems = _tune_all(workload, session, console)
    if results:
        console.print(report.tuned_table(results))
        print_lines(console, report.tuned_lines(results))
    for name, problem in problems:
        console.print(f"{name}: {problem}", style="red", markup=False, soft_wrap=True)
    if not options.no_offline and device.kind == "cpu":
        _examine_sample(console)
    if not options.no_slots:
        _recommend(session, BUDGET, console)
    return FAILED if problems else 0


def _slots(options: argparse.Namespace, console: Console) -> int:
    with Workers() as workers:
        session = _session(options, workers, workers.device(options.device))
        rule = rule_named(options.rule) if options.rule else None
        _recommend(session, parse_budget(options.budget) if options.budget else BUDGET, console, rule)
    return 0


def _regret(options: argparse.Namespace, console: Console) -> int:
    with Workers() as workers:
        device = workers.device(options.device)
        named = parse_spec(options.spec) if options.spec else load_workload(DEFAULT_FILE, device.kind)[0]
        return experiments.run_regret(named, _session(options, workers, device), options.runs, console)


def _recommend(session: StudySession, budget: Budget, console: Console, rule: Rule | None = None) -> None:
    with SearchProgress(console) as progress:
        progress.begin("slots and chunk")
        recommendation, status = recommend(session, budget, progress.show_slots, rule)
        measured = f"{status.measured} of {status.points} points measured"
        knee = "recommended" if rule is None else "the knee"
        progress.end(f"slots {recommendation.slots}, chunk {recommendation.chunk} {knee}; {measured}")
    console.print(report.front_table(recommendation, knee))


def _prune(options: argparse.Namespace, console: Console) -> int:
    device = named(_OFFLINE_DEVICE if options.device is None else options.device)
    for each in _workload(options, device):
        examined = list(examine_some(each.spec, device, most=options.most, seconds=options.seconds))
        console.print(report.examined_table(each.name, device, examined))
    return 0


def _examine_sample(console: Console) -> None:
    """Compile a few Triton candidates of the GPU workload's first spec, to say what can be said without a GPU."""
    device = named(_OFFLINE_DEVICE)
    first = load_workload(DEFAULT_FILE, device.kind)[0]
    try:
        examined = list(examine_some(first.spec, device, most=_SAMPLE, seconds=_SAMPLE_SECONDS))
    except BackendUnavailableError as error:
        console.print(f"no Triton candidate was compiled for {device.arch}: {error}", markup=False, soft_wrap=True)
        return
    console.print(report.examined_table(first.name, device, examined))


def _tune_all(
    workload: Sequence[NamedSpec], session: StudySession, console: Console
) -> tuple[list[Tuned], list[tuple[str, TrellisError]]]:
    results: list[Tuned] = []
    problems: list[tuple[str, TrellisError]] = []
    with SearchProgress(console) as progress:
        for each in workload:
            try:
                results.append(tune(each, session, progress))
            except TrellisError as error:
                # One spec that cannot be tuned says nothing about the next.
                progress.end(f"failed: {error}")
                problems.append((each.name, error))
            stop_if_interrupted()
    return results, problems


def _workload(options: argparse.Namespace, device: Device) -> tuple[NamedSpec, ...]:
    own = tuple(parse_spec(text) for text in options.spec or ())
    listed: tuple[NamedSpec, ...] = ()
    if options.workload or not own:
        path = Path(options.workload or DEFAULT_FILE)
        listed = load_workload(path, device.kind)
        if options.only:
            known = [each.name for each in listed]
            for name in options.only:
                if name not in known:
                    raise WorkloadError(source=f"--only {name}", problem=f"{path} lists {', '.join(known)}")
            listed = tuple(each for each in listed if each.name in options.only)
    return require_distinct((*listed, *own), "the command line and the workload together")


def _parser() -> argparse.ArgumentParser:
    parser = program("python -m tuner", "Find the fastest correct kernels for this machine.")
    commands = parser.add_subparsers(required=True, metavar="command")
    tuning = command(commands, "tune", _tune, "search every spec of the workload and keep the winners")
    _workload_options(tuning)
    _measuring_options(tuning, f"for each spec: 60s, 5m, or 40 trials in all (default {DEFAULT})")
    tuning.add_argument("--compile", action="store_true", help="measure torch.compile of the eager code too (minutes)")
    gpu_commands.add_offline(tuning)
    tuning.add_argument("--cores", metavar="N", type=int, help="tune for a process that may use N cores (default: all)")
    tuning.add_argument("--no-slots", action="store_true", help="leave out the study of slot count and chunk size")
    tuning.add_argument("--no-offline", action="store_true", help=f"compile nothing for {_OFFLINE_DEVICE}")
    slots = command(commands, "slots", _slots, "study slot count and chunk size, and recommend one of each")
    _measuring_options(slots, f"60s, 5m, or a number of points (default {BUDGET})")
    slots.add_argument("--rule", metavar="RULE", help="a name or the JSON text of a rule (default: TRELLIS, stored)")
    pruning = command(commands, "prune", _prune, "compile Triton candidates for a GPU that is not here")
    _workload_options(pruning)
    pruning.add_argument("--most", metavar="N", type=int, default=1000, help="candidates for each spec (default: all)")
    pruning.add_argument("--seconds", metavar="S", type=float, default=3600.0, help="for each spec (default 3600)")
    experiments.add_regret(command(commands, "regret", _regret, "tune one spec many times, and compare the winners"))
    experiments.add_replay(command(commands, "replay", experiments.run_replay, "try samplers on recorded spaces"))
    experiments.add_calibrate(
        command(commands, "calibrate", experiments.run_calibrate, "compare the probe of slots with trained models")
    )
    gpu_commands.add(commands)
    gpu_export.add(commands)
    record_commands.add(commands)
    return parser


def _workload_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workload", metavar="FILE", help="a file like tuner/workload.yaml")
    parser.add_argument("--only", metavar="NAME", action="append", help="only this spec of the workload (repeatable)")
    parser.add_argument("--spec", metavar="TEXT", action="append", help='"name: tokens=4096, heads=12" (repeatable)')


def _measuring_options(parser: argparse.ArgumentParser, budget: str) -> None:
    parser.add_argument("--budget", metavar="TEXT", help=budget)
    parser.add_argument("--backend", choices=backends(), help="whose kernels to measure")
    parser.add_argument("--timing", choices=[policy.name for policy in POLICIES], help="how times are taken")
    storage_option(parser)
