"""Results as text: CSV for programs, Markdown for people."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from io import StringIO

from trellis_ops.recall.cell import Result


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
    """Accuracy by number of pairs, one line for each C, phi and M, the seeds together."""
    found = [each for each in results if each.cell.task == "recall"]
    pairs = sorted({count for each in found for count in each.accuracy})
    rows = [
        [
            *map(str, key),
            *(_mean([each.accuracy[count] for each in group if count in each.accuracy]) for count in pairs),
        ]
        for key, group in sorted(grouped(found, lambda each: (each.cell.chunk, each.cell.phi, each.cell.slots)).items())
    ]
    return markdown(["C", "phi", "M", *(f"{count} pairs" for count in pairs)], rows)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def grouped(
    results: Sequence[Result], key: Callable[[Result], tuple[object, ...]]
) -> dict[tuple[object, ...], list[Result]]:
    """The results by `key`, in the order in which keys came."""
    groups: dict[tuple[object, ...], list[Result]] = {}
    for each in results:
        groups.setdefault(key(each), []).append(each)
    return groups


def _mean(shares: Sequence[float]) -> str:
    return f"{statistics.mean(shares):.2f}" if shares else ""
