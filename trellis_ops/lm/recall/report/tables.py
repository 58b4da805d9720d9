"""Results as text: CSV for programs, Markdown for people."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from io import StringIO
from typing import Any

from trellis_ops.lm.recall.cell import Result
from trellis_ops.lm.recall.grids import USES_EPS

_MODEL = (
    "phi",
    "phi_eps",
    "learned_state",
    "normalize_qkv",
    "outer_gradient",
    "slots",
    "chunk",
    "init_step_size",
)


def to_csv(results: Sequence[Result]) -> str:
    """One row for every cell and number of pairs."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    settings = [name for name in asdict(results[0].cell) if name != "pairs"] if results else []
    writer.writerow([*settings, "pairs", "accuracy", "bits_per_byte", "steps_taken", "diverged"])
    for result in results:
        cell = asdict(result.cell)
        for pairs, share in result.accuracy.items() or [("", "")]:
            bits = "" if result.bits_per_byte is None else f"{result.bits_per_byte:.6g}"
            row = [*(cell[name] for name in settings), pairs, share, bits, result.steps, int(result.diverged)]
            writer.writerow(row)
    return text.getvalue()


def curve_table(results: Sequence[Result]) -> str:
    """Accuracy by number of pairs, one line for each C, phi, M and whatever else differs, with spread over seeds."""
    pairs = sorted({count for each in results for count in each.accuracy})
    also = differing(results, ("chunk", "phi", "slots"))
    names = ("chunk", "phi", "slots", *also)
    rows = []
    for key, group in sorted(grouped(results, lambda each: values(each, names)).items()):
        shares = [[each.accuracy[count] for each in group if count in each.accuracy] for count in pairs]
        rows.append([*map(str, key), *(spread(each, 2) for each in shares), str(len(group))])
    return markdown(["C", "phi", "M", *also, *(f"{count} pairs" for count in pairs), "seeds"], rows)


def differing(results: Sequence[Result], named: Collection[str]) -> tuple[str, ...]:
    """The settings of a model that are not the same in all results, without those in `named` and the seed."""
    return tuple(
        name for name in _MODEL if name not in named and len({getattr(each.cell, name) for each in results}) > 1
    )


def values(result: Result, names: Sequence[str]) -> tuple[Any, ...]:
    """The settings called `names` of a result; "-" where one has no effect."""
    cell = result.cell
    return tuple("-" if name == "phi_eps" and cell.phi not in USES_EPS else getattr(cell, name) for name in names)


def label(result: Result, names: Sequence[str]) -> str:
    """The settings called `names` of a result, as text."""
    return ", ".join(f"{name}={value}" for name, value in zip(names, values(result, names), strict=True))


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def grouped(results: Sequence[Result], key: Callable[[Result], tuple[Any, ...]]) -> dict[tuple[Any, ...], list[Result]]:
    """The results by `key`, in the order in which keys came."""
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for each in results:
        groups.setdefault(key(each), []).append(each)
    return groups


def spread(values: Sequence[float], digits: int) -> str:
    """The mean, and the standard deviation where there are several values."""
    if not values:
        return ""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def seeds(group: Sequence[Result]) -> str:
    """How many results of recall there are, and of text where it differs, and how many diverged."""
    if not group:
        return ""
    recall = [each for each in group if each.cell.task == "recall"]
    lost = sum(each.diverged for each in group)
    texts = len(group) - len(recall)
    text = f"{len(recall)}" if texts in (0, len(recall)) else f"{len(recall)}, {texts}"
    return f"{text} ({lost} of {len(group)} diverged)" if lost else text
