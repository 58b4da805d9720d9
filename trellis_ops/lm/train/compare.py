"""Three models of one size on one text, some seeds of each, in one table: `python -m trellis_ops.lm.train.compare`.

The memory with the rule that is configured, the same memory with phi = identity (the gated delta rule), and softmax
attention; with `--rules` the memories of those rules instead. Each run has a folder of its own, and the same command
goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from concurrent.futures import as_completed
from pathlib import Path

from codegen.device import cpu
from codegen.errors import TrellisError
from codegen.rules import NAMED
from trellis_ops.files.regular_file import open_to_append
from trellis_ops.lm.train.options.options import parser
from trellis_ops.lm.train.options.ranges import MOST_THREADS, count
from trellis_ops.lm.train.processes.workers import pool
from trellis_ops.lm.train.summary import Summary, table

MODELS: dict[str, dict[str, str]] = {
    "trellis": {},
    "identity": {"phi": "identity"},
    "softmax": {"mixer": "softmax"},
}
"""What is compared, and the options that make it."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Train every model with every seed, as many at once as there are cores, and print the table of all."""
    options = _parser().parse_args(arguments)
    models = MODELS if options.rules is None else {name: {"rule": name} for name in options.rules}
    seeds = range(options.seed, options.seed + options.seeds)
    runs = [_run(options, name, changes, seed) for name, changes in models.items() for seed in seeds]
    try:
        problems = _run_all(runs, options.workers or cpu().cores)
    except (TrellisError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from the last checkpoints, where there are any")
    done = [Summary.read(run.folder / "summary.json") for run in runs if run.folder not in problems]
    if done:
        print(f"\n{table(done)}")
    if problems:
        sys.exit(f"{len(problems)} of {len(runs)} runs failed")


def _run(options: Namespace, model: str, changes: Mapping[str, str], seed: int) -> Namespace:
    this = {**changes, "seed": seed, "folder": options.folder / f"{model}-{seed}", "threads": 1}
    return Namespace(**{**vars(options), **this})


def _run_all(runs: Sequence[Namespace], workers: int) -> Mapping[Path, str]:
    """What went wrong, by folder."""
    problems = {}
    with pool(max(1, min(workers, len(runs)))) as executor:
        # One seed of each model after the other, so that a table of whole seeds is there early.
        order = sorted(runs, key=lambda run: run.seed)
        started = {executor.submit(_train, run): run.folder for run in order}
        for ended, future in enumerate(as_completed(started), start=1):
            folder, problem = started[future], future.result()
            if problem:
                problems[folder] = problem
            said = problem or _said(Summary.read(folder / "summary.json"))
            print(f"{ended} of {len(runs)}: {folder.name}: {said}", flush=True)
    return problems


def _train(run: Namespace) -> str:
    """Train one, with what it prints in `log.txt` of its folder; what went wrong, or nothing."""
    # Imported here, after the threads of a worker are set.
    from trellis_ops.lm.train.cli import train

    run.folder.mkdir(parents=True, exist_ok=True)
    with (
        open_to_append(run.folder / "log.txt") as file,
        io.TextIOWrapper(io.BufferedWriter(file), "utf-8", "backslashreplace", line_buffering=True) as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        try:
            train(run)
        except SystemExit as stopped:
            return str(stopped.code)
    return ""


def _said(summary: Summary) -> str:
    return f"{summary.bits_per_byte:.4f} bits per byte after {summary.steps} steps in {summary.seconds:.0f} s"


def _parser() -> argparse.ArgumentParser:
    options = parser()
    options.prog = "python -m trellis_ops.lm.train.compare"
    options.description = (
        "Train the memory, the gated delta rule and softmax attention on the same text, some seeds of each, and print "
        "a table. Every run has a folder in --folder. The same command again goes on where it was stopped."
    )
    group = options.add_argument_group("comparison")
    rules = "compare these rules, each with the options of the model and the chunk size of its layer"
    group.add_argument("--rules", nargs="+", choices=NAMED, metavar="RULE", help=f"{rules}: {', '.join(NAMED)}")
    group.add_argument("--seeds", type=count(1, 1000), default=3, metavar="N", help="seeds of each, from --seed on (3)")
    group.add_argument(
        "--workers", type=count(1, MOST_THREADS), help="runs at once, of one thread each (default: one for each core)"
    )
    return options


if __name__ == "__main__":
    main()
