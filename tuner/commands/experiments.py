"""Commands that put the tuner itself to the test: regret, replay and calibrate."""

from __future__ import annotations

import argparse
from pathlib import Path

import optuna
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from codegen.errors import WorkloadError
from trellis_ops.specs.workload import NamedSpec
from tuner.duration import duration
from tuner.experiments.calibration import LEAST_POINTS, correlation, read_points, verdict
from tuner.experiments.regret import Regret, Tuning, regret
from tuner.experiments.replay import RECORDED, SEEDS, Replayed, read_spaces, replay
from tuner.search.study import StudySession
from tuner.space.sampler import SAMPLERS, default_sampler

RUNS = 10


def add_regret(command: argparse.ArgumentParser) -> None:
    """The options of `regret`, those of measuring left to the caller."""
    command.add_argument(
        "--spec", metavar="TEXT", help='"name: tokens=4096, heads=12" (default: the workload\'s first)'
    )
    command.add_argument("--runs", metavar="N", type=_count, default=RUNS, help=f"tunings (default {RUNS})")
    command.add_argument("--budget", metavar="TEXT", default="25", help="of each tuning: 60s, or a number of trials")
    command.set_defaults(backend=None, storage=None, timing=None)


def add_replay(command: argparse.ArgumentParser) -> None:
    """The options of `replay`."""
    command.add_argument("--file", metavar="CSV", type=Path, default=RECORDED, help="another recording")
    command.add_argument("--seeds", metavar="N", type=_count, default=SEEDS, help=f"searches (default {SEEDS})")
    command.add_argument("--sampler", choices=SAMPLERS, action="append", help="only this one (repeatable)")


def add_calibrate(command: argparse.ArgumentParser) -> None:
    """The options of `calibrate`."""
    command.add_argument(
        "file", metavar="JSONL", type=Path, help="results that `python -m trellis_ops.lm.recall` keeps"
    )


def run_calibrate(options: argparse.Namespace, console: Console) -> int:
    """Print the probe of slots and chunks beside what trained models recalled."""
    points = read_points(options.file)
    table = Table(title="Recall: the probe beside trained models", title_justify="left")
    for name in ("phi", "slots", "chunk", "D", "trained", "probe"):
        table.add_column(name, justify="right")
    for point in points:
        shares = (f"{point.trained:.3f}", f"{point.probe:.3f}")
        table.add_row(point.phi, *map(str, (point.slots, point.chunk, point.dim)), *shares)
    console.print(table)
    for phi in sorted({point.phi for point in points}):
        some = [point for point in points if point.phi == phi]
        if len(some) >= LEAST_POINTS:
            console.print(f"{phi}: {verdict(correlation(some))}", soft_wrap=True, highlight=False)
    console.print(f"all: {verdict(correlation(points))}", soft_wrap=True, highlight=False)
    return 0


def run_regret(named: NamedSpec, session: StudySession, runs: int, console: Console) -> int:
    """Tune `named` `runs` times, and print the regret of each winner."""
    console.print(f"{named.name}: {runs} tunings, {session.budget} each", highlight=False, markup=False)

    def show(tuning: Tuning) -> None:
        text = f"seed {tuning.seed}: {tuning.trials} tried, {tuning.winner.key()}"
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    found = regret(named.spec, session, runs, show)
    console.print(regret_table(found))
    console.print(f"mean regret {found.mean:.2%}", highlight=False)
    return 0


def run_replay(options: argparse.Namespace, console: Console) -> int:
    """Print how many trials each sampler needs on each recorded space."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    samplers = options.sampler or [each for each in SAMPLERS if each != "gp" or default_sampler() == "gp"]
    if "gp" in samplers and default_sampler() != "gp":
        raise WorkloadError(source="--sampler gp", problem="it needs the package scipy, which is not installed")
    if options.sampler is None and "gp" not in samplers:
        console.print("gp is left out: it needs the package scipy, which is not installed", highlight=False)

    def show(one: Replayed) -> None:
        if not console.is_terminal:
            return
        console.print(f"{one.space}, {one.sampler}: median {one.median:g} trials", highlight=False, markup=False)

    done = replay(read_spaces(options.file), samplers, options.seeds, show)
    console.print(replay_table(done))
    return 0


def regret_table(found: Regret) -> Table:
    """A row for each tuning."""
    table = Table(title="All finalists measured again in turn", title_justify="left")
    for name, justify in (("seed", "right"), ("tried", "right"), ("winner", "left"), ("time", "right")):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    table.add_column("regret", justify="right")
    for tuning in found.tunings:
        key = tuning.winner.key()
        row = (str(tuning.seed), str(tuning.trials), key, duration(found.seconds[key]), f"{found.of(tuning):.1%}")
        table.add_row(*map(escape, row))
    return table


def replay_table(done: list[Replayed]) -> Table:
    """A row for each space and sampler: trials until within 5% of the best."""
    table = Table(title="Trials until within 5% of the best", title_justify="left")
    for name in ("space", "sampler"):
        table.add_column(name)
    for name in ("points", "allowed", "median", "nine of ten", "most"):
        table.add_column(name, justify="right")
    for one in done:
        numbers = (one.points, one.allowed, f"{one.median:g}", f"{one.ninth:.0f}", max(one.trials))
        table.add_row(escape(one.space), one.sampler, *map(str, numbers))
    return table


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise ValueError(f"{text} is no positive number")
    return count
