"""The command line of the recall studies."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from codegen.errors import TrellisError
from codegen.rule import MAPS
from trellis_ops.files import regular_file
from trellis_ops.lm.recall import grids
from trellis_ops.lm.recall.cell import Cell, Result
from trellis_ops.lm.recall.ledger import Ledger
from trellis_ops.lm.recall.report import curve_page, page, rules_page, tables
from trellis_ops.lm.recall.study import Progress, study, time_again
from trellis_ops.lm.train.curve import require_matplotlib
from trellis_ops.lm.train.options.ranges import MOST_THREADS, at_least_zero, count
from trellis_ops.lm.train.processes.memory import memory_limits
from trellis_ops.lm.train.saving.exclusive import exclusive
from trellis_ops.outer_gradient import OUTER_GRADIENTS

_YES_NO = {"yes": True, "no": False}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what has no result yet, then write tables and pictures of all there is."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(words)
    try:
        require_matplotlib()
        cells = _cells(options)
        with exclusive(options.folder, f"study-{options.study}"), memory_limits():
            _study(options, cells, _command(words))
    except (TrellisError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; what was learned is kept, and the same command goes on from there")


def _study(options: argparse.Namespace, cells: Sequence[Cell], command: str) -> None:
    ledger = Ledger(options.folder / f"{options.study}.jsonl")
    if options.times:
        time_again(ledger.results(), ledger, _show_time)
        ended = True
    else:
        ended = not cells or study(cells, ledger, options.text, _show, options.minutes, options.workers)
    known = set(cells)
    results = [each for each in ledger.results() if each.cell in known]
    if results:
        _write(options, cells, results, command)
    if not ended:
        print(f"{len(results)} of {len(cells)} cells have a result; the same command goes on with the others")


def _cells(options: argparse.Namespace) -> list[Cell]:
    axes = {**_GRIDS[options.study], **_given(options, _AXES)}
    sizes = _given(options, _SIZES)
    start = grids.OF_RULES if options.study == "rules" else Cell()
    base = replace(start, **{**sizes, "pairs": tuple(sizes.get("pairs", start.pairs))})
    both = [base]
    if options.text and options.study != "pairs":
        from trellis_ops.lm.recall.learning import text_of

        digest = text_of(options.text)[0].fingerprint()
        # A text has no pairs and no vocabulary of its own.
        both.append(replace(base, task="text", text=digest, pairs=(), batch=_TEXT_BATCH))
    made = grids.of_rules if options.study == "rules" else grids.cells
    found = [cell for tasks in zip(*(made(axes, each) for each in both), strict=True) for cell in tasks]
    return grids.from_the_middle(found, axes, options.changes) if options.study == "ablation" else found


def _given(options: argparse.Namespace, names: Mapping[str, Any]) -> dict[str, Any]:
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


_GRIDS = {"pairs": grids.CURVE, "ablation": grids.ABLATION, "rules": grids.RULES}
_TEXT_BATCH = 8


def _command(words: Sequence[str]) -> str:
    """What makes the results again: what was given, without the options that only say when and beside what."""
    kept = [word for word in words if word != "--times"]
    for name in ("--minutes", "--workers"):
        if name in kept:
            del kept[kept.index(name) : kept.index(name) + 2]
    return f".venv/bin/python -m trellis_ops.lm.recall {shlex.join(kept)}"


def _write(options: argparse.Namespace, cells: Sequence[Cell], results: Sequence[Result], command: str) -> None:
    folder: Path = options.folder
    regular_file.write(folder / f"{options.study}.csv", tables.to_csv(results))
    if options.study == "ablation":
        path = options.page or folder / "learning.md"
        page.write_page(results, len(cells), path, command)
    elif options.study == "rules":
        path = options.page or folder / "rules.md"
        print(rules_page.write_rules_page(results, len(cells), path, command))
    else:
        path = options.page or folder / "pairs.md"
        print(curve_page.write_curve_page(results, len(cells), path, command))
    print(f"see {path}")


def _show(progress: Progress) -> None:
    result, cell = progress.newest, progress.newest.cell
    if cell.task == "text":
        learned = "no number" if result.bits_per_byte is None else f"{result.bits_per_byte:.3f} bits per byte"
    else:
        learned = " ".join(f"{pairs}:{share:.2f}" for pairs, share in result.accuracy.items())
    sizes = f"M = {cell.slots}, C = {cell.chunk}, step_size from {cell.init_step_size:g}, seed {cell.seed}"
    if cell.rule == "trellis":
        rule = f"{page.setting(result)}, {cell.outer_gradient}, {sizes}"
    else:
        rule = f"{cell.rule}, {rules_page.sizes_of(cell)}, seed {cell.seed}"
    lost = "diverged, " if result.diverged else ""
    steps = f"{lost}{result.steps} steps, {result.seconds:.0f} s"
    print(f"{progress.done} of {progress.cells}: {rule}: {learned} ({steps})", flush=True)


def _show_time(progress: Progress) -> None:
    result = progress.newest
    sizes = rules_page.sizes_of(result.cell)
    print(f"{progress.done} of {progress.cells}: {result.cell.rule}, {sizes}: {result.decode_us:.0f} us", flush=True)


def _yes_no(text: str) -> bool:
    if text not in _YES_NO:
        raise argparse.ArgumentTypeError(f"{text!r} is neither yes nor no")
    return _YES_NO[text]


_AXES: dict[str, dict[str, Any]] = {
    "rule": {"metavar": "RULE"},
    "slots": {"type": int, "metavar": "M"},
    "chunk": {"type": int, "metavar": "C"},
    "phi": {"choices": MAPS},
    "phi_eps": {"type": float, "metavar": "E"},
    "learned_state": {"type": _yes_no, "metavar": "yes/no"},
    "normalize_qkv": {"type": _yes_no, "metavar": "yes/no"},
    "outer_gradient": {"choices": OUTER_GRADIENTS},
    "init_step_size": {"type": float, "metavar": "G"},
    "seed": {"type": int, "metavar": "S"},
}
_SIZES: dict[str, dict[str, Any]] = {
    "layers": {"type": int},
    "heads": {"type": int},
    "dim": {"type": int, "metavar": "D"},
    "vocab": {"type": int},
    "pairs": {"type": int, "nargs": "+"},
    "steps": {"type": int},
    "batch": {"type": int},
    "learning_rate": {"type": float},
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trellis_ops.lm.recall",
        description="What small models learn to recall (MQAR). The same command again goes on where it was stopped.",
    )
    texts = "pairs: accuracy against the number of pairs; ablation: what makes it learn; rules: all at equal cost"
    parser.add_argument("study", nargs="?", choices=_GRIDS, default="pairs", help=f"{texts} (default: pairs)")
    parser.add_argument("--folder", type=Path, required=True, help="where results, tables and pictures go")
    workers = "models trained at once (default: one for each core); 0 trains them in this process"
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--minutes", type=at_least_zero, help="begin no model after so many")
    parser.add_argument("--workers", type=count(0, MOST_THREADS), help=workers)
    parser.add_argument("--text", type=Path, nargs="+", default=[], help="ablation, rules: text to learn as well")
    changes = "ablation: leave out what changes more settings of the defaults than so many (default: leave out nothing)"
    parser.add_argument("--changes", type=count(0, 100), metavar="N", help=changes)
    parser.add_argument("--page", type=Path, help="the Markdown file to write (default: in the folder)")
    times = "train nothing: take the time of a token of every model that has one again, one after another, and keep it"
    either.add_argument("--times", action="store_true", help=times)
    axes = parser.add_argument_group("what varies", "Several values each; all combinations are trained.")
    for name, how in _AXES.items():
        axes.add_argument(f"--{name.replace('_', '-')}", nargs="+", **how)
    sizes = parser.add_argument_group("sizes, the same for all")
    plain, of_rules = Cell(), grids.OF_RULES
    for name, how in _SIZES.items():
        default, other = getattr(plain, name), getattr(of_rules, name)
        also = "" if default == other else f"; rules: {other}"
        sizes.add_argument(f"--{name.replace('_', '-')}", **how, help=f"default: {default}{also}")
    return parser
