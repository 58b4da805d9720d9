"""What models with each rule recall, from the folder that `python -m trellis_ops.lm.recall rules` has written."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trellis_ops.files import regular_file
from trellis_ops.lm.recall.cell import Result


@dataclass(frozen=True)
class Recalled:
    """Of one rule.

    Attributes:
        accuracy: share of queries answered, by number of pairs, the mean over seeds.
        seeds: how many.
        remark: what a reader must know beside.
    """

    accuracy: dict[int, float]
    seeds: int
    remark: str = ""


def recalled(folder: Path) -> dict[str, Recalled]:
    """By the name of the rule; empty where there is no such folder.

    Raises:
        ValueError: a line that is no result; the last one, of a run that goes on or was killed, is left out instead.
    """
    path = folder / "rules.jsonl"
    if not path.exists():
        return {}
    *lines, _ = regular_file.read_bytes(path).decode().split("\n")
    found: dict[str, dict[str, Result]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            result = Result.from_line(line)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"line {number} of {path} is no result of this version ({error})") from error
        if result.cell.task == "recall":
            found.setdefault(result.cell.rule, {})[result.cell.key()] = result
    return {rule: _mean(list(results.values())) for rule, results in found.items()}


def _mean(results: Sequence[Result]) -> Recalled:
    """Over the seeds of the newest result's cell: a folder may hold a rule at several sizes."""
    newest = results[-1].cell
    group = [each for each in results if replace(each.cell, seed=newest.seed) == newest]
    pairs = sorted({count for each in group for count in each.accuracy})
    accuracy = {
        count: statistics.mean(each.accuracy[count] for each in group if count in each.accuracy) for count in pairs
    }
    remarks = [f"{sum(each.diverged for each in group)} of {len(group)} models diverged"] * any(
        each.diverged for each in group
    )
    if len(group) < len(results):
        remarks.append("recall of the newest of several sizes")
    return Recalled(accuracy, len(group), ", ".join(remarks))
