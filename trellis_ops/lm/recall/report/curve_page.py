"""The page on accuracy against the number of pairs, written from whatever results there are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trellis_ops.lm.recall.cell import Result
from trellis_ops.lm.recall.report import pages, plots, tables

HEAD = """## What was trained

Written by

    {command}

from {results} results of {cells}, each a model of {layers} layers of {heads} heads, D = {dim}, after at most {steps}
batches of {batch} sequences of multi-query associative recall (MQAR, [arXiv 2312.04927](https://arxiv.org/abs/2312.04927))
with {pairs} pairs among {vocab} tokens, at a learning rate of {rate:g}. They took {minutes:.0f} minutes of one core.
Share of queries answered, with the standard deviation where there are several seeds; by chance it is {chance:.3f}.
"""


def write_curve_page(results: Sequence[Result], cells: int, path: Path, command: str) -> str:
    """Write a page, and pictures beside it; the table.

    Args:
        results: what there is, all of the same sizes.
        cells: how many the study has in all.
        path: a Markdown file.
        command: what makes it again.
    """
    cell = results[0].cell
    head = HEAD.format(
        command=command,
        results=len(results),
        cells=cells,
        layers=cell.layers,
        heads=cell.heads,
        dim=cell.dim,
        steps=cell.steps,
        batch=cell.batch,
        pairs=", ".join(map(str, cell.pairs)),
        vocab=cell.vocab,
        rate=cell.learning_rate,
        minutes=sum(each.seconds for each in results) / 60,
        chance=2.0 / cell.vocab,
    )
    table = tables.curve_table(results)
    by_pairs, by_slot = path.with_suffix(".png"), path.with_name(f"{path.stem}-per-slot.png")
    pictures = f"![accuracy against pairs]({by_pairs.name})", f"![accuracy against pairs per slot]({by_slot.name})"
    path.parent.mkdir(parents=True, exist_ok=True)
    pages.write(path, "What the model recalls", [head, table, *pictures])
    plots.draw_curves(results, by_pairs)
    plots.draw_curves(results, by_slot, per_slot=True)
    return table
